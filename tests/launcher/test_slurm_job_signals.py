"""The program that a batch script becomes, beside a job that was given nothing real."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.kept import SOURCE
from support.servers import free_port

_MAIN = """
import os, sys
from pathlib import Path
from ollampi.launcher import slurm_job
from ollampi.launcher.mpi import Vendor
from ollampi.launcher.slurm_nodes import Allocation, Node
from ollampi.launcher.slurm_site import Site, Way

class Job(slurm_job.Job):
    def build(self, attempt):
        print("ranks are started", flush=True)
        return ["sleep", "60"], dict(os.environ)

def prepare(given, environ):
    place = slurm_job.Place("7", "127.0.0.1", Path(sys.argv[2]), None, None, "")
    site = Site((Way.MPIRUN,), Vendor.OPEN_MPI, None)
    return Job([], {"server.port": int(sys.argv[3])}, environ, Allocation((Node("n1", 1),), None), site, place)

def composed(given, environ, compose=slurm_job.compose_config):
    os.kill(os.getpid(), int(sys.argv[1]))
    return compose(given, environ)

slurm_job.prepare, slurm_job.compose_config = prepare, composed
slurm_job.main()
"""


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_between_the_preparation_and_the_start_ends_the_job(tmp_path: Path, number: signal.Signals) -> None:
    line = [sys.executable, "-c", _MAIN, str(int(number)), str(tmp_path), str(free_port())]
    done = subprocess.run(
        line, env={**os.environ, "PYTHONPATH": str(SOURCE)}, stdin=subprocess.DEVNULL, capture_output=True, timeout=50
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert list(tmp_path.iterdir()) == []
