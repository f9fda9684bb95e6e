"""A process that made a laboratory is killed in the middle of a job over hosts: nothing of it stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.netlab_reaper import processes
from support.servers import alive, wait_until

TESTS = Path(__file__).resolve().parent.parent
ENDED_S = 60.0
INNER = """
import os, sys, time
from pathlib import Path
from support.netlab import lab
from support.netlab_runs import start_ranks

RANK = "import sys, time; Path = __import__('pathlib').Path; Path(sys.argv[1], str(time.time_ns())).touch(); "
RANK += "time.sleep(1000)"

def test_that_is_killed():
    folder = Path({folder!r})
    with lab(2, 0, {delay_us}) as net, start_ranks(net, [1, 2], ["-c", RANK, str(folder)]) as job:
        while len(list(folder.iterdir())) < 3:
            assert job.poll() is None
            time.sleep(0.05)
        spaces = [os.readlink(f"/proc/{{pid}}/ns/net") for pid in net.pids]
        print("running", net.agent.parent, job.pid, *spaces, flush=True)
        time.sleep(1000)
"""


@pytest.mark.parametrize("delay_us", [None, 50.0], ids=["switch", "relay"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_stays_of_a_laboratory_whose_pytest_is_killed(
    tmp_path: Path, number: signal.Signals, delay_us: float | None
) -> None:
    (tmp_path / "ranks").mkdir()
    inner = tmp_path / "test_inner.py"
    inner.write_text(INNER.format(folder=str(tmp_path / "ranks"), delay_us=delay_us))
    line = [sys.executable, "-m", "pytest", "-s", "-q", "-p", "no:cacheprovider", "-c", "/dev/null", str(inner)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS.parent / "src"), str(TESTS)])}
    with subprocess.Popen(line, env=env, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as killed:
        assert killed.stdout is not None
        words = next(line for line in killed.stdout if "running" in line).partition("running")[2].split()
        folder, job, spaces = Path(words[0]), int(words[1]), words[2:]
        assert all(len(list(processes(space))) >= 2 for space in spaces)  # what holds the host, and ranks
        killed.send_signal(number)
        assert killed.wait(ENDED_S) != 0
        wait_until(lambda: not any(list(processes(space)) for space in spaces), ENDED_S, "the hosts to end")
        wait_until(lambda: not alive(job) and not folder.exists(), ENDED_S, "mpirun and the folder to go")
