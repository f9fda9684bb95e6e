"""A host is cut off, or a rank on it stopped, while a server answers: each side names the other, and the job ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support import stopping
from support.netlab import Lab, lab
from support.netlab_reaper import processes
from support.netlab_runs import start_ranks
from support.servers import DEMO, alive, endless_model, wait_until

from ollampi.launcher import starting

ENDED_S = 90.0
ASK = """
import http.client, json
c = http.client.HTTPConnection("127.0.0.1", 11434, timeout=100)
body = {"model": "endless", "prompt": "x", "raw": True, "options": {"num_predict": 100000}}
c.request("POST", "/api/generate", json.dumps(body))
answer = c.getresponse()
while line := answer.readline():
    print(line, flush=True)
"""
TOLD = re.compile(r"^ollampi: rank (\d+): (.*) (?:has|have) not come to \S+ for 2 s: .*; ending the job$", re.M)


def ranks_of(net: Lab, host: int) -> list[int]:
    """Return the ranks' processes on a host; mpirun's line has theirs in it."""
    space = os.readlink(f"/proc/{net.pids[host]}/ns/net")
    found = []
    for entry in Path("/proc").iterdir():
        try:
            line = (entry / "cmdline").read_bytes().split(b"\0")
            if os.readlink(entry / "ns" / "net") == space and line[1:3] == [b"-m", b"ollampi.launcher.serve"]:
                found.append(int(entry.name))
        except OSError:
            continue
    return found


WAYS = [("cut", [1, 1]), ("cut", [2, 1]), ("drop", [1, 2, 1]), ("stop", [1, 1, 1])]


@pytest.mark.parametrize(("how", "ranks"), WAYS, ids=str)
def test_each_side_names_the_other_and_all_ranks_end(tmp_path: Path, how: str, ranks: list[int]) -> None:
    model, log = endless_model(tmp_path), tmp_path / "log"
    last, size = len(ranks) - 1, sum(ranks)
    program = ["-m", "ollampi.launcher.serve", f"model={model}", "exchange.timeout_s=2", "engine.max_drafts=0"]
    with lab(len(ranks), 0) as net, log.open("w") as out, start_ranks(net, ranks, program, out) as job:
        wait_until(lambda: "serving at" in log.read_text() or job.poll() is not None, ENDED_S, "the server")
        asking = subprocess.Popen(net.inside(0, [sys.executable, "-c", ASK]), stdout=subprocess.PIPE, text=True)
        with asking:
            assert asking.stdout is not None
            assert "response" in asking.stdout.readline()
            pids = [pid for host in range(len(ranks)) for pid in ranks_of(net, host)]
            assert len(pids) == size
            if how == "cut":
                net.cut(last)
            elif how == "drop":
                net.drop(last)
            else:
                os.kill(ranks_of(net, last)[0], signal.SIGSTOP)
            wait_until(lambda: not any(alive(pid) for pid in pids), ENDED_S, "all ranks to end")
            asking.kill()
        assert job.wait(ENDED_S) != 0
    told = {int(who): missing for who, missing in TOLD.findall(log.read_text())}
    for rank in range(size - 1):
        assert told[rank] == f"rank {size - 1} (host h{last + 1})"


@pytest.mark.parametrize(
    ("place", "awaited"), [("mpi", "MPI's start"), ("measuring", "the preparation of the exchange")], ids=str
)
def test_a_rank_that_is_stopped_on_its_way_is_named_with_its_host(tmp_path: Path, place: str, awaited: str) -> None:
    log = tmp_path / "log"
    program = [stopping.__file__, place, "1", f"model={DEMO}", "exchange.timeout_s=2"]
    with lab(2) as net, log.open("w") as out, start_ranks(net, [1, 1], program, out) as job:
        assert job.wait(ENDED_S) != 0
    who = 1 if place == "mpi" else 0  # before MPI has started only the host of a rank knows of it
    assert f"ollampi: rank {who}: rank 1 (host h2) has not come to {awaited} for 2 s: " in log.read_text()


def test_a_host_that_is_cut_off_while_mpi_starts_ends_the_job(tmp_path: Path) -> None:
    """Rank 1 comes, but does not enter MPI before its host is cut off."""
    log = tmp_path / "log"
    program = [stopping.__file__, "hang", "1", f"model={DEMO}", "exchange.timeout_s=0.5"]
    with lab(2) as net, log.open("w") as out, start_ranks(net, [1, 1], program, out) as job:
        space = os.readlink(f"/proc/{net.pids[1]}/ns/net")
        wait_until(lambda: any(map(is_watch, processes(space))), ENDED_S, "the last rank")
        net.cut(1)
        assert job.wait(ENDED_S) != 0
    assert "rank 0: MPI has not started for 10 s, though all ranks of host h1 have come: look" in log.read_text()


def is_watch(pid: int) -> bool:
    """Return whether a process watches over the start of a rank."""
    try:
        return starting.__file__.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
