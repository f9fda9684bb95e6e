"""Test the commands: what they print, what they send, what they become, and how they fail."""

import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from ollampi.launcher import cli
from ollampi.launcher.cli import main

SOURCE = Path(cli.__file__).parent.parent.parent
DEAD = "127.0.0.1:9"  # the discard port: nobody listens


class Handler(BaseHTTPRequestHandler):
    """Answer a path with the server's canned lines, or 404 as Ollama does for a model it has not."""

    server: "FakeApi"

    def log_message(self, *args: object) -> None:
        """Stay silent."""

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.requests.append((self.path, json.loads(body) if body else None))
        missing = [{"error": f"model '{json.loads(body or b'{}').get('model')}' not found"}]
        self.send_response(200 if self.path in self.server.answers else 404)
        self.end_headers()
        try:
            for line in self.server.answers.get(self.path, missing):
                self.wfile.write(json.dumps(line).encode() + b"\n")
                self.wfile.flush()
        except OSError:
            self.server.hung_up.set()

    do_GET = do_POST = _answer


class FakeApi(ThreadingHTTPServer):
    """Play the server; `run` calls the command line on it."""

    daemon_threads = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, Any] = {}
        self.requests: list[tuple[str, Any]] = []
        self.hung_up = threading.Event()
        self.host = f"127.0.0.1:{self.server_port}"

    def run(self, *args: str, stdin: str = "") -> Result:
        """Run a command against this server."""
        return CliRunner().invoke(main, args, input=stdin, env={"OLLAMA_HOST": self.host})


@pytest.fixture
def api() -> Iterator[FakeApi]:
    server = FakeApi()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


class Become(Exception):
    """Stand for the program that exec turns this one into."""


@pytest.fixture
def become(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    seen: list[Any] = []

    def note(*args: Any) -> None:
        seen.extend(args)
        raise Become

    monkeypatch.setattr(os, "execv", note)
    return seen


def test_version() -> None:
    assert CliRunner().invoke(main, ["--version"]).output == "ollampi version 0.1.0\n"


@pytest.mark.parametrize("name", ["", *main.commands])
def test_help_fits_80_columns(name: str) -> None:
    result = CliRunner().invoke(main, [*filter(None, [name]), "--help"])
    assert result.exit_code == 0
    assert max(map(len, result.output.splitlines())) <= 80
    assert len(result.output.splitlines()) > 5


def test_every_command_says_what_it_does() -> None:
    assert {"serve", "launch", "run", "list", "ps", "show", "stop"} <= set(main.commands)
    assert all(command.help for command in main.commands.values())


def test_nothing_heavy_is_imported() -> None:
    code = "import sys, ollampi.launcher.cli; print(*{'torch', 'mpi4py', 'hydra', 'transformers'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.stdout, done.stderr) == ("\n", "")


@pytest.mark.parametrize(
    "overrides", [[], ["model=tiny", "port=1"], ["~x", "+a=b c"], ["a=1", "--help"], ["--cfg", "job"]]
)
def test_serve_becomes_the_server(become: list[Any], overrides: list[str]) -> None:
    result = CliRunner().invoke(main, ["serve", *overrides])
    assert isinstance(result.exception, Become)
    assert become == [sys.executable, [sys.executable, "-m", "ollampi.launcher.serve", *overrides]]


@pytest.fixture
def mpirun(tmp_path: Path) -> str:
    path = tmp_path / "mpirun"
    path.write_text("#!/bin/sh\necho 'mpirun (Open MPI) 4.1.4'\n")
    path.chmod(0o755)
    return str(path)


def test_launch_dry_run_prints_a_line_for_the_shell(mpirun: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    for name in [name for name in os.environ if name.startswith("OMPI_")]:
        monkeypatch.delenv(name)
    result = CliRunner().invoke(main, ["launch", "-n", "4", "--mpirun", mpirun, "--dry-run", "model=a b"])
    assert shlex.split(result.output) == [
        "OMPI_MCA_btl=^ofi",
        "OMPI_MCA_osc=^ucx",
        "OMPI_MCA_mtl=^ofi",
        *[mpirun, "--oversubscribe", "--bind-to", "none", "-n", "4"],
        *[sys.executable, "-m", "ollampi.launcher.serve", "model=a b"],
    ]
    assert result.output.startswith("OMPI_MCA_btl='^ofi' ")


def test_launch_runs_mpirun_and_ends_as_it_does(mpirun: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[Any] = []

    def supervise(line: list[str], environ: dict[str, str]) -> int:
        ran.extend([line, environ])
        return 7

    monkeypatch.setattr(cli, "supervise", supervise)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("OMPI_MCA_btl", "tcp,self")
    result = CliRunner().invoke(main, ["launch", "model=tiny", "-n", "2", "--mpirun", mpirun])
    assert result.exit_code == 7
    line, environ = ran
    assert line[0] == mpirun
    assert line[-5:] == ["2", sys.executable, "-m", "ollampi.launcher.serve", "model=tiny"]
    assert environ["OMPI_ALLOW_RUN_AS_ROOT"] == "1"
    assert environ["OMPI_MCA_btl"] == "tcp,self"
    assert environ["PATH"] == os.environ["PATH"]
    assert mpirun in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["--mpirun", "/nowhere/mpirun"], "Error: no program '/nowhere/mpirun'"),
        (["-n", "0"], "Error: cannot start 0 ranks: ask for at least 1"),
        (["server.prot=1"], "Error: unknown setting 'server.prot'; server has: host, port,"),
        (["--colour"], "Error: '--colour' is no setting; write key=value"),
        (["engine.context_length=abc", "model=demo"], "Error: engine.context_length is 'abc'; it must be a whole"),
    ],
)
def test_launch_says_what_is_wrong(mpirun: str, args: list[str], text: str) -> None:
    result = CliRunner().invoke(main, ["launch", "--mpirun", mpirun, *args])
    assert result.exit_code == 1
    assert result.stderr.startswith(text)
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "args",
    [["list"], ["ls"], ["ps"], ["show", "m"], ["stop", "m"], ["run", "m"], ["run", "m", "hello"]],
    ids=" ".join,
)
def test_no_server_is_one_line_and_exit_1(args: list[str]) -> None:
    result = CliRunner().invoke(main, [*args, "--host", DEAD])
    assert result.exit_code == 1
    assert re.fullmatch(
        rf"Error: no server answers at http://{DEAD} \(.*\): start .*`make serve` or `ollampi launch -n 4`.*\n",
        result.stderr,
    )
    assert result.stdout == ""


@pytest.mark.parametrize("args", [["show", "m"], ["stop", "m"], ["run", "m", "hello"]], ids=" ".join)
def test_an_error_of_the_server_is_one_line_and_exit_1(api: FakeApi, args: list[str]) -> None:
    result = api.run(*args)
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", "Error: model 'm' not found\n")


def test_host_option_beats_the_environment(api: FakeApi) -> None:
    api.answers["/api/ps"] = [{"models": []}]
    result = CliRunner().invoke(main, ["ps", "--host", f"http://{api.host}"], env={"OLLAMA_HOST": DEAD})
    assert result.exit_code == 0, result.output


def test_a_strange_host_is_one_line_and_exit_1() -> None:
    result = CliRunner().invoke(main, ["ps"], env={"OLLAMA_HOST": "ftp://x"})
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: OLLAMA_HOST is 'ftp://x'; it must be host, host:port, ")
    assert result.stderr.endswith("(the scheme must be http or https)\n")


def test_the_option_is_named_where_it_is_the_strange_one() -> None:
    result = CliRunner().invoke(main, ["ps", "--host", "x:y"], env={"OLLAMA_HOST": "z"})
    assert result.stderr.startswith("Error: --host is 'x:y'; it must be")


def moment(**ahead: float) -> str:
    return (datetime.now(UTC) + timedelta(**ahead)).isoformat()


@pytest.mark.parametrize("command", ["list", "ls"])
def test_list(api: FakeApi, command: str) -> None:
    model = {"name": "tiny:latest", "digest": "0123456789abcdef", "size": 11_354_112, "modified_at": moment(hours=-2.1)}
    api.answers["/api/tags"] = [{"models": [model]}]
    assert api.run(command).output == (
        "NAME           ID              SIZE     MODIFIED\ntiny:latest    0123456789ab    11 MB    2 hours ago\n"
    )


def test_list_without_models(api: FakeApi) -> None:
    api.answers["/api/tags"] = [{"models": None}]
    assert api.run("list").output == "NAME    ID    SIZE    MODIFIED\n"


def test_ps(api: FakeApi) -> None:
    shared = {"digest": "sha256:0123456789abcdef", "size": 48_000_000, "context_length": 4096}
    api.answers["/api/ps"] = [
        {
            "models": [
                {**shared, "name": "a", "expires_at": "2318-04-13T02:51:20Z"},
                {**shared, "name": "b", "expires_at": moment(minutes=4.9), "size_vram": 24_000_000},
            ]
        }
    ]
    assert api.run("ps").output == (
        "NAME    ID              SIZE     PROCESSOR          CONTEXT    UNTIL\n"
        "a       0123456789ab    48 MB    100% CPU           4096       Forever\n"
        "b       0123456789ab    48 MB    50%/50% CPU/GPU    4096       4 minutes from now\n"
    )


FACTS = {
    "license": "MIT",
    "modelfile": "FROM tiny",
    "parameters": "seed                           1",
    "template": "{{ .Prompt }}",
    "system": "Be brief.",
    "details": {"family": "llama"},
    "model_info": {"llama.context_length": 512},
}


def test_show(api: FakeApi) -> None:
    api.answers["/api/show"] = [FACTS]
    output = api.run("show", "tiny").output
    assert output.startswith("  Model\n    architecture      llama\n    context length    512\n")
    assert api.requests == [("/api/show", {"stream": False, "model": "tiny", "verbose": False})]


def test_show_verbose_asks_for_everything(api: FakeApi) -> None:
    api.answers["/api/show"] = [FACTS]
    assert "Metadata" in api.run("show", "tiny", "-v").output
    assert api.requests[0][1]["verbose"] is True


@pytest.mark.parametrize("part", ["license", "modelfile", "parameters", "template", "system"])
def test_show_one_part(api: FakeApi, part: str) -> None:
    api.answers["/api/show"] = [FACTS]
    assert api.run("show", "tiny", f"--{part}").output == f"{FACTS[part]}\n"


def test_show_two_parts_is_an_error(api: FakeApi) -> None:
    result = api.run("show", "tiny", "--license", "--system")
    assert result.exit_code == 2
    assert "--license and --system exclude each other" in result.output


def test_stop_unloads(api: FakeApi) -> None:
    api.answers["/api/generate"] = [{"done": True, "done_reason": "unload"}]
    result = api.run("stop", "tiny")
    assert (result.exit_code, result.output) == (0, "")
    assert api.requests == [("/api/generate", {"stream": False, "model": "tiny", "keep_alive": 0})]


ANSWER = [{"response": "Hel"}, {"response": "lo"}, {"response": "", "done": True, "eval_count": 2}]


@pytest.mark.parametrize(
    ("args", "stdin", "prompt"),
    [
        (["why", "is", "it?"], "", "why is it?"),
        ([], "from a pipe", "from a pipe"),
        (["explain"], "some text\n", "explain\n\nsome text\n"),
        (["--", "--verbose"], "", "--verbose"),
        ([], "", ""),
    ],
)
def test_run_sends_arguments_and_standard_input(api: FakeApi, args: list[str], stdin: str, prompt: str) -> None:
    api.answers["/api/generate"] = ANSWER
    result = api.run("run", "tiny", *args, stdin=stdin)
    assert (result.stdout, result.stderr, result.exit_code) == ("Hello\n", "", 0)
    assert api.requests == [("/api/generate", {"model": "tiny", "prompt": prompt, "stream": True})]


@pytest.mark.parametrize(
    ("flags", "sent"),
    [
        (["--keepalive", "5m"], {"keep_alive": "5m"}),
        (["--keepalive", "0"], {"keep_alive": 0}),
        (["--keepalive", "-1"], {"keep_alive": -1}),
        (["--format", "json"], {"format": "json"}),
        (["--format", '{"type": "object"}'], {"format": {"type": "object"}}),
        (["--think", "true"], {"think": True}),
        (["--think=false"], {"think": False}),
        (["--think=high"], {"think": "high"}),
        (["--hidethinking", "--nowordwrap", "--think"], {"think": True}),
    ],
)
def test_run_flags(api: FakeApi, flags: list[str], sent: dict[str, Any]) -> None:
    api.answers["/api/generate"] = ANSWER
    assert api.run("run", "tiny", "hi", *flags).exit_code == 0
    assert api.requests[0][1] == {"model": "tiny", "prompt": "hi", "stream": True, **sent}


def test_run_refuses_a_broken_schema(api: FakeApi) -> None:
    result = api.run("run", "tiny", "hi", "--format", "{broken")
    assert (result.exit_code, api.requests) == (1, [])
    assert result.stderr.startswith("Error: --format is neither `json` nor a JSON schema")


def test_run_verbose_prints_timings_beside_the_answer(api: FakeApi) -> None:
    api.answers["/api/generate"] = ANSWER
    result = api.run("run", "tiny", "hi", "--verbose")
    assert (result.stdout, result.stderr) == ("Hello\n", "eval count:           2 token(s)\n")


def test_run_without_a_prompt_on_a_terminal_is_a_conversation(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    api.answers["/api/generate"] = [{"done": True, "done_reason": "load"}]
    api.answers["/api/chat"] = [{"message": {"content": "hi"}}, {"done": True}]
    monkeypatch.setattr(sys, "stdin", Terminal("hello\n/bye\n"))
    written = io.StringIO()
    monkeypatch.setattr(sys, "stdout", written)
    with pytest.raises(SystemExit) as left:
        main(["run", "tiny", "--host", api.host])
    assert left.value.code == 0
    assert written.getvalue() == ">>> hi\n\n>>> "
    assert [path for path, _ in api.requests] == ["/api/generate", "/api/chat"]


def test_ctrl_c_stops_the_answer_and_the_server(api: FakeApi) -> None:
    def endless() -> Iterator[dict[str, str]]:
        while not api.hung_up.is_set():
            time.sleep(0.005)
            yield {"response": "x"}

    api.answers["/api/generate"] = endless()
    process = subprocess.Popen(
        [sys.executable, "-m", "ollampi", "run", "tiny", "hi", "--host", api.host],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.read(3) == b"xxx"
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert output.strip(b"x") == b"\n"
    assert errors == b""
    assert api.hung_up.wait(10)


def test_the_alias_is_not_a_command_of_its_own() -> None:
    context = click.Context(main)
    assert main.get_command(context, "ls") is main.get_command(context, "list")
    assert "ls" not in main.list_commands(context)
