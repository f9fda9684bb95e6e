"""How the server of a sweep's points is started in a Slurm job: the way that the site has, on the job's first tasks."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from sweep_points import Server
from sweep_server import Subject, SweepError, running
from sweep_start import first_tasks, start_line

from ollampi.launcher.slurm_nodes import Node
from ollampi.launcher.slurm_site import VARIABLE
from ollampi.mpiruntime.errors import ConfigError

PROGRAM = [sys.executable, "-m", "ollampi.launcher.serve", "model=demo"]
JOB = {
    "SLURM_JOB_ID": "7",
    "SLURMD_NODENAME": "n1",
    "SLURM_JOB_NODELIST": "n[1-3]",
    "SLURM_NTASKS": "5",
    "SLURM_TASKS_PER_NODE": "2(x2),1",
    "SLURM_CPUS_PER_TASK": "3",
    "SLURM_MEM_PER_CPU": "500",
}
# srun of a site that has PMIx, and what each rank of a trial says
SRUN = """#!/bin/sh
case "$*" in *--mpi=list*) echo "MPI plugin types are... pmix none"; exit;; esac
for each; do case $each in --ntasks=*) ranks=${each#--ntasks=};; esac; done
for each in $(seq "$ranks"); do echo "world $ranks"; done
"""


@pytest.fixture
def srun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Be in a batch script of a job of five tasks on three nodes; return its srun."""
    path = tmp_path / "srun"
    path.write_text(SRUN)
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    for name, value in JOB.items():
        monkeypatch.setenv(name, value)
    return path


def started(ranks: int) -> tuple[list[str], dict[str, str]]:
    """Return line and environment of a start, without what ends it with this process."""
    line, environ = start_line(ranks, PROGRAM)
    assert (line[:2], line[3]) == ([sys.executable, "-c"], str(os.getpid()))
    return line[4:], environ


def test_ranks_are_the_first_tasks_of_the_job_and_srun_starts_them(
    srun: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line, environ = started(3)
    assert line[0] == "srun"
    assert {"--mpi=pmix", "--ntasks=3", "--nodelist=n1,n1,n2", "--cpus-per-task=3"} < set(line)
    assert line[-len(PROGRAM) :] == PROGRAM
    assert environ["SLURM_OVERLAP"] == "1"
    assert "SLURM_MEM_PER_CPU" not in environ
    assert capsys.readouterr().err == "sweep: starting ranks on n1 (2), n2 (1) with srun --mpi=pmix\n"


def test_the_way_that_the_user_wants_is_taken(srun: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "mpirun")
    line, environ = started(5)
    assert Path(line[0]).name == "mpirun"
    assert "n1:2,n2:2,n3:1" in line
    assert environ["SLURM_WHOLE"] == "1"


def start(ranks: int) -> None:
    """Start a server as a sweep does."""
    with running(Server(ranks), cast(Subject, SimpleNamespace(path=Path("demo"))), [], 60, 60):
        pass


def test_a_job_with_too_few_tasks_fails_the_point_with_the_remedy(srun: Path) -> None:
    assert first_tasks([Node("n1", 2), Node("n2", 2)], 2) == [Node("n1", 2)]
    with pytest.raises(ConfigError, match=r"6 ranks and this job 5 tasks; ask sbatch for --ntasks=6"):
        start_line(6, PROGRAM)
    with pytest.raises(SweepError, match=r"the server cannot be started: the server has 6 ranks"):
        start(6)


def test_outside_of_a_batch_script_the_ranks_are_on_this_host(srun: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURMD_NODENAME")
    assert started(2)[0][0] != "srun"
