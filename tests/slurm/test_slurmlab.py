"""The Slurm of these tests is one of three nodes."""

from __future__ import annotations

from support.servers import alive, wait_until
from support.slurmlab import Slurm, lab

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


def test_another_slurm_on_this_machine_is_left_alone(slurm: Slurm) -> None:
    mine = sleeping(slurm)
    daemons = [daemon.pid for daemon in slurm.daemons.values()]
    with lab(1) as other:
        theirs = sleeping(other)
        assert theirs != mine
        assert not set(slurm.processes()) & set(other.processes())
        other.kill_node("n1")
        assert other.processes(f"SLURM_JOB_ID={theirs}") == []
    assert all(alive(pid) for pid in daemons)
    assert slurm.job(mine)["JobState"] == "RUNNING"
    assert slurm.processes(f"SLURM_JOB_ID={mine}") != []
    slurm.run("scancel", str(mine))
    assert slurm.wait(mine)["JobState"] == "CANCELLED"


def sleeping(slurm: Slurm) -> int:
    """Return a job that sleeps on the first node."""
    number = slurm.submit("-N1", "--nodelist=n1", "--wrap", "sleep 1000")
    wait_until(lambda: len(slurm.processes(f"SLURM_JOB_ID={number}")) > 0, ENDED_S, "the job to run")
    return number
