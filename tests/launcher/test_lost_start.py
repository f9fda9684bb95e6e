"""A rank is stopped before the server serves: the others name it and what they wait for, and the job ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support import stopping
from support.servers import DEMO, alive, descendants, free_port, mpirun, wait_until

from ollampi.launcher import starting as module
from ollampi.launcher.starting import Starting, awaited

ENDED_S = 90.0
TOLD = re.compile(r"^ollampi: rank (\d+): rank (\d+) \(host (\S+)\) has not come to (.*) for 1.5 s: .*; ending", re.M)
AWAITED = {
    "imports": {"MPI's start"},
    "mpi": {"MPI's start"},
    "measuring": {"the preparation of the exchange"},
    "port": {"the opening of the port"},
    "load": {"messages", "answers"},
}


@contextmanager
def stopping_server(
    size: int, tmp_path: Path, place: str, rank: int, timeout_s: float = 1.5
) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """Run a server of which a rank stops on the way; give mpirun and the file of what is printed."""
    settings = [f"server.port={free_port()}", f"model={DEMO}", f"exchange.timeout_s={timeout_s}"]
    line, env = mpirun(size, [sys.executable, stopping.__file__, place, str(rank), *settings])
    log = tmp_path / "log"
    with log.open("w") as out:
        process = subprocess.Popen(line, env=env, stdout=out, stderr=out, text=True, start_new_session=True)
    try:
        yield process, log
    finally:
        for pid in [process.pid, *descendants(process.pid)]:
            if alive(pid):
                os.kill(pid, signal.SIGKILL)
        process.wait()


@pytest.mark.parametrize("place", AWAITED)
@pytest.mark.parametrize(("size", "rank"), [(2, 0), (3, 1)])
def test_a_rank_that_is_stopped_on_the_way_is_named_with_what_it_was_awaited_in(
    tmp_path: Path, size: int, rank: int, place: str
) -> None:
    with stopping_server(size, tmp_path, place, rank) as (process, log):
        assert process.wait(ENDED_S) != 0
    told = TOLD.findall(log.read_text())
    others = {str(other) for other in range(size) if other != rank}
    alone = {str(rank)} if place == "mpi" else set()  # its own watch speaks too
    assert others <= {who for who, _, _, _ in told} <= others | alone, log.read_text()
    assert {missing for _, missing, _, _ in told} == {str(rank)}
    assert {host for _, _, host, _ in told} == {os.uname().nodename}
    assert {what for _, _, _, what in told} <= AWAITED[place]


def test_a_start_that_never_ends_although_all_have_come_ends_the_job(tmp_path: Path) -> None:
    with stopping_server(2, tmp_path, "hang", 1, timeout_s=0.3) as (process, log):
        assert process.wait(ENDED_S) != 0
    text = f"MPI has not started for 6 s, though all ranks of host {os.uname().nodename} have come: look"
    assert re.findall(rf"^ollampi: rank \d: {text}", log.read_text(), re.M), log.read_text()


def test_a_job_that_is_stopped_as_a_whole_starts_when_it_goes_on(tmp_path: Path) -> None:
    with stopping_server(2, tmp_path, "nowhere", 0) as (process, log):
        wait_until(lambda: len(ranks(process.pid)) == 2, ENDED_S, "two ranks")
        pids = ranks(process.pid)
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(4)  # more than the limit
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        wait_until(lambda: "serving at" in log.read_text() or process.poll() is not None, ENDED_S, "the server")
        assert process.poll() is None, log.read_text()
    assert not TOLD.findall(log.read_text())


def ranks(pid: int) -> list[int]:
    """Return the processes of ranks below mpirun."""
    return [child for child in descendants(pid) if str(stopping.__file__).encode() in command(child)]


def command(pid: int) -> list[bytes]:
    """Return the words of a process."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []


def test_nobody_is_awaited_by_a_process_that_is_no_rank() -> None:
    assert not awaited(os.getpid())
    assert awaited(2**30) is None


def test_the_watch_ends_with_its_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    before = set(descendants(os.getpid()))
    starting = Starting(0.2)
    (pid,) = set(descendants(os.getpid())) - before
    time.sleep(0.5)
    assert alive(pid)
    starting.over()
    starting.over()
    assert not alive(pid)


def test_names_of_processes_that_are_no_text_are_borne(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel cuts names after 15 bytes, which may be within a character."""
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "stat").write_bytes(b"7 (na\xc3\xafve na\xc3) T 1 7 7 0")
    (tmp_path / "7" / "comm").write_bytes(b"na\xc3\n")
    monkeypatch.setattr(module, "Path", lambda path: Path(str(path).replace("/proc", str(tmp_path))))
    found = module._processes()[7]
    assert (found.parent, found.stopped, module._name(7)) == (1, True, "na\N{REPLACEMENT CHARACTER}")
