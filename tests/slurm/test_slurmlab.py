"""The Slurm of these tests is one of three nodes."""

from __future__ import annotations

from support.servers import wait_until
from support.slurmlab import Slurm

ENDED_S = 60.0


def test_a_job_runs_on_all_nodes_and_can_be_asked_about(slurm: Slurm) -> None:
    (slurm.folder / "work" / "job.sh").write_text("#!/bin/bash\nsrun sh -c 'echo \"$SLURMD_NODENAME $SLURM_PROCID\"'\n")
    number = slurm.submit("-N3", "-n3", "--output=job.log", "job.sh")
    assert slurm.wait(number)["ExitCode"] == "0:0"
    log = (slurm.folder / "work" / "job.log").read_text()
    assert sorted(log.splitlines()) == ["n1 0", "n2 1", "n3 2"]


def test_a_node_that_is_killed_takes_its_processes_along_and_comes_back(slurm: Slurm) -> None:
    number = slurm.submit("-N1", "--nodelist=n3", "--no-requeue", "--wrap", "sleep 1000")
    wait_until(lambda: len(slurm.processes(f"SLURM_JOB_ID={number}")) > 0, ENDED_S, "the job to run")
    slurm.kill_node("n3")
    assert slurm.processes("SLURMD_NODENAME=n3", "SLURMLAB_NODE=n3") == []
    slurm.run("scontrol", "update", "nodename=n3", "state=down", "reason=killed")  # slurmctld's wait for it, made short
    assert slurm.wait(number)["JobState"] == "NODE_FAIL"
    slurm.start_node("n3")
    slurm.wait_for_nodes()
