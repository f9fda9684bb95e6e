"""Test `run`: what it prints, what it sends, and how it ends."""

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.fake_api import FakeApi

from ollampi.launcher import cli, cli_run
from ollampi.launcher.cli import main
from ollampi.launcher.terminal import PlainLines, TerminalLines

SOURCE = Path(cli.__file__).parent.parent.parent


@pytest.fixture
def api(api: FakeApi) -> FakeApi:
    api.answers["/api/show"] = [{"capabilities": ["completion"]}]
    return api


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
    assert api.requests[1:] == [("/api/generate", {"model": "tiny", "prompt": prompt, "stream": True})]


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
    assert api.requests[1][1] == {"model": "tiny", "prompt": "hi", "stream": True, **sent}


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
    assert [path for path, _ in api.requests] == ["/api/show", "/api/generate", "/api/chat"]


@pytest.mark.parametrize(("term", "kind"), [("dumb", PlainLines), ("xterm", TerminalLines)])
def test_a_dumb_terminal_gets_no_sequences(term: str, kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setenv("TERM", term)
    assert type(cli_run._typed_lines()) is kind


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
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # which a job in the background ignores
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


def test_a_model_that_is_not_there_is_pulled_first(api: FakeApi) -> None:
    api.missing_once.append("/api/show")
    api.answers["/api/pull"] = [{"status": "pulling manifest"}, {"status": "success"}]
    api.answers["/api/generate"] = ANSWER
    result = api.run("run", "tiny", "hi", "--insecure")
    assert (result.stdout, result.stderr, result.exit_code) == ("Hello\n", "pulling manifest\nsuccess\n", 0)
    assert [path for path, _ in api.requests] == ["/api/show", "/api/pull", "/api/show", "/api/generate"]
    assert api.requests[1][1] == {"model": "tiny", "insecure": True, "stream": True}


def test_a_model_that_cannot_be_pulled_either_is_an_error(api: FakeApi) -> None:
    api.missing_once.append("/api/show")
    api.answers["/api/pull"] = [{"status": "pulling manifest"}, {"error": "pull model manifest: no such model"}]
    result = api.run("run", "tiny", "hi")
    assert (result.stdout, result.exit_code) == ("", 1)
    assert result.stderr == "pulling manifest\nError: pull model manifest: no such model\n"


@pytest.fixture
def embedder(api: FakeApi) -> FakeApi:
    api.answers["/api/show"] = [{"capabilities": ["embedding"]}]
    api.answers["/api/embed"] = [{"embeddings": [[0.5, -0.25]]}]
    return api


def test_a_model_that_embeds_prints_the_numbers(embedder: FakeApi) -> None:
    result = embedder.run("run", "tiny", "some", "text", "--truncate=false", "--dimensions", "2", "--keepalive", "5m")
    assert (result.output, result.exit_code) == ("[0.5, -0.25]\n", 0)
    body = {"model": "tiny", "input": "some text", "truncate": False, "dimensions": 2, "keep_alive": "5m"}
    assert embedder.requests[1:] == [("/api/embed", {"stream": False, **body})]


def test_a_model_that_embeds_wants_a_text(embedder: FakeApi) -> None:
    result = embedder.run("run", "tiny")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: tiny only embeds: give it a text")
