"""Test the commands that start a server: what they become, and how they fail."""

import json
import os
import shlex
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from support.fake_api import Become

from ollampi.launcher import cli_serve
from ollampi.launcher.cli import main
from ollampi.launcher.keeper_link import KEEPER, SECRET
from ollampi.launcher.supervise import TERMINAL


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


def test_launch_passes_options_of_the_server_on(mpirun: str, tmp_path: Path) -> None:
    file = tmp_path / "cluster.json"
    file.write_text('{"api_port": 11500}')
    given = ["--config", str(file), "--listen", ":1", "--log-level=debug"]
    result = CliRunner().invoke(main, ["launch", "-n", "4", "--mpirun", mpirun, "--dry-run", *given, "model=x"])
    assert result.exit_code == 0
    assert shlex.split(result.output)[-6:] == [*given, "model=x"]


def test_launch_starts_one_rank_where_no_cluster_is_wanted(mpirun: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_CLUSTER_ENABLED", "false")
    result = CliRunner().invoke(main, ["launch", "-n", "4", "--mpirun", mpirun, "--dry-run"])
    assert result.stderr == "ollampi: cluster.enabled is false: one rank is started\n"
    assert shlex.split(result.stdout)[-5:] == ["-n", "1", sys.executable, "-m", "ollampi.launcher.serve"]


def test_launch_runs_mpirun_and_ends_as_it_does(mpirun: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[Any] = []

    def supervise(line: list[str], environ: dict[str, str]) -> int:
        ran.extend([line, environ])
        return 7

    monkeypatch.setattr(cli_serve, "supervise", supervise)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("OMPI_MCA_btl", "tcp,self")
    result = CliRunner().invoke(main, ["launch", "server.port=0", "model=tiny", "-n", "2", "--mpirun", mpirun])
    assert result.exit_code == 7
    line, environ = ran
    assert line[0] == mpirun
    assert line[-6:] == ["2", sys.executable, "-m", "ollampi.launcher.serve", "server.port=0", "model=tiny"]
    assert environ["OMPI_ALLOW_RUN_AS_ROOT"] == "1"
    assert environ["OMPI_MCA_btl"] == "tcp,self"
    assert environ["PATH"] == os.environ["PATH"]
    assert mpirun in result.stderr
    assert result.stdout == ""


def test_launch_with_restarts_becomes_the_keeper(
    mpirun: str, become: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMPI_MCA_btl", "tcp,self")
    monkeypatch.setenv(TERMINAL, "x")
    given = ["server.port=0", "model=tiny"]
    result = CliRunner().invoke(main, ["launch", "-n", "2", "--restarts", "5", "--mpirun", mpirun, *given])
    assert isinstance(result.exception, Become)
    program, (_, *started, handed) = become
    assert (program, started) == (sys.executable, ["-m", "ollampi.launcher.keeper"])
    told = json.loads(handed)
    assert (told["overrides"], told["restarts"]) == (given, 5)
    assert told["line"][:5] == [mpirun, "-x", KEEPER, "-x", SECRET]
    assert told["line"][-6:] == ["2", sys.executable, "-m", "ollampi.launcher.serve", *given]
    assert os.environ[TERMINAL] == ""


def test_a_dry_run_says_that_its_line_starts_nothing_again(mpirun: str) -> None:
    result = CliRunner().invoke(main, ["launch", "--mpirun", mpirun, "--dry-run", "--restarts", "5"])
    assert result.exit_code == 0
    assert "--restarts" not in result.stdout
    assert "pasted into a shell this line starts the ranks once; --restarts is the launcher's own" in result.stderr


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["--mpirun", "/nowhere/mpirun"], "Error: no program '/nowhere/mpirun'"),
        (["--restarts", "3", "server.prot=1"], "Error: unknown setting 'server.prot'; server has: host, port,"),
        (["-n", "0"], "Error: cannot start 0 ranks: ask for at least 1"),
        (["server.prot=1"], "Error: unknown setting 'server.prot'; server has: host, port,"),
        (["--config", "/nowhere.json"], "Error: --config names /nowhere.json, which is no file; give the path"),
        (["--colour"], "Error: '--colour' is no setting; write key=value"),
        (["engine.context_length=abc", "model=demo"], "Error: engine.context_length is 'abc'; it must be a whole"),
        (["exchange.interface=eth99"], "Error: exchange.interface is 'eth99', which"),
        (["--host", "localhost:2", "-n", "3"], "Error: --host has 2 slots for 3 ranks: ask for at most 2, or give"),
        (["--host", "-oProxyCommand=x"], "Error: --host -oProxyCommand=x names '-oProxyCommand=x', which can be no"),
        (["--host", "nowhere.invalid"], "Error: --host names nowhere.invalid, which is no host that can be found"),
        (["--hostfile", "/nowhere.txt"], "Error: --hostfile names /nowhere.txt, which cannot be read: No such file"),
        (["--host", "localhost", "--hostfile", "f"], "Error: --host localhost and --hostfile f both name hosts"),
        (["--bind", "core", "-n", "9999"], "Error: --bind core cannot give 9999 ranks of a host cores of their own"),
    ],
)
def test_launch_says_what_is_wrong(mpirun: str, args: list[str], text: str) -> None:
    result = CliRunner().invoke(main, ["launch", "--mpirun", mpirun, *args])
    assert result.exit_code == 1
    assert result.stderr.startswith(text)
    assert result.stderr.count("\n") == 1


@pytest.fixture
def taken() -> Iterator[int]:
    """Return a port on which somebody listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


@pytest.mark.parametrize("given", ["server.port={}", "--listen=127.0.0.1:{}", "OLLAMA_HOST"])
def test_launch_says_that_a_port_is_taken_before_mpirun_starts(
    mpirun: str, monkeypatch: pytest.MonkeyPatch, taken: int, given: str
) -> None:
    monkeypatch.setattr(cli_serve, "supervise", None)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setenv("OLLAMA_HOST", f"127.0.0.1:{taken}" if given == "OLLAMA_HOST" else "")
    words = [] if given == "OLLAMA_HOST" else [given.format(taken)]
    result = CliRunner().invoke(main, ["launch", "-n", "2", "--mpirun", mpirun, *words])
    assert result.exit_code == 1
    assert result.stderr == (
        f"Error: cannot listen on 127.0.0.1:{taken}: Address already in use; give another address with server.host=…,"
        " server.port=… or OLLAMA_HOST\n"
    )


@pytest.mark.parametrize("elsewhere", ["--hostfile", "SLURM_JOB_NUM_NODES", "SLURM_JOB_ID"])
def test_launch_leaves_a_port_to_the_host_that_rank_0_may_be_on(
    mpirun: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, taken: int, elsewhere: str
) -> None:
    (tmp_path / "hosts.txt").write_text("192.0.2.1 slots=2\n")
    monkeypatch.setattr(cli_serve, "supervise", lambda line, environ: 7)
    if elsewhere.startswith("SLURM"):
        monkeypatch.setenv(elsewhere, "2")
    words = ["--hostfile", str(tmp_path / "hosts.txt")] if elsewhere == "--hostfile" else []
    result = CliRunner().invoke(main, ["launch", "--mpirun", mpirun, *words, f"server.port={taken}"])
    assert result.exit_code == 7, result.output


@pytest.mark.parametrize("elsewhere", ["--hostfile", "SLURM_JOB_NUM_NODES"])
def test_launch_leaves_an_interface_to_the_hosts_that_it_may_not_be_one_of(
    mpirun: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, elsewhere: str
) -> None:
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "2" if elsewhere.startswith("SLURM") else "1")
    (tmp_path / "hosts.txt").write_text("192.0.2.1 slots=2\n")
    args = ["--hostfile", str(tmp_path / "hosts.txt")] if elsewhere.startswith("--") else []
    line = ["launch", "--mpirun", mpirun, "--dry-run", *args, "exchange.interface=eth99"]
    result = CliRunner().invoke(main, line)
    assert result.exit_code == 0, result.output
    assert "OMPI_MCA_btl_tcp_if_include=eth99" in shlex.split(result.output)
