"""A process that made a Slurm is killed in the middle of a job: nothing of it stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.servers import alive, wait_until
from support.slurmlab import missing

TESTS = Path(__file__).resolve().parent.parent
ENDED_S = 60.0
INNER = """
import time
from support.slurmlab import lab
from support.servers import wait_until

def test_that_is_killed():
    with lab(2) as slurm:
        slurm.submit("-N2", "--wrap", "srun sleep 1000")
        wait_until(lambda: len(slurm.processes("SLURM_PROCID=1")) > 0, 60, "the job to run")
        print("running", slurm.folder, *slurm.processes(), flush=True)
        time.sleep(1000)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_stays_of_a_slurm_whose_pytest_is_killed(tmp_path: Path, number: signal.Signals) -> None:
    if reason := missing():
        pytest.skip(reason)
    inner = tmp_path / "test_inner.py"
    inner.write_text(INNER)
    line = [sys.executable, "-m", "pytest", "-s", "-q", "-p", "no:cacheprovider", "-c", "/dev/null", str(inner)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS.parent / "src"), str(TESTS)])}
    with subprocess.Popen(line, env=env, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as killed:
        assert killed.stdout is not None
        words = next(line for line in killed.stdout if "running" in line).partition("running")[2].split()
        folder, pids = Path(words[0]), [int(word) for word in words[1:]]
        assert len(pids) >= 7  # munged, slurmctld, two slurmd, slurmstepd, the script, srun and what it started
        killed.send_signal(number)
        assert killed.wait(ENDED_S) != 0
        wait_until(lambda: not any(alive(pid) for pid in pids), ENDED_S, "the daemons and the job to end")
        wait_until(lambda: not folder.exists(), ENDED_S, "the folder to go")
