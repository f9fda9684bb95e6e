"""Each way starts exactly the tasks of each node as one world, and ranks see the GPUs that they may have."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from support.slurm_jobs import ROOT
from support.slurmlab import Slurm, has_pmix

from ollampi.launcher.slurm_site import VARIABLE

SCRIPT = f"""#!/bin/bash
exec {sys.executable} ways.py
"""
PROGRAM = """
import os, subprocess, sys
from ollampi.launcher import slurm_site
from ollampi.launcher.slurm_nodes import allocation

RANK = "import os; from mpi4py import MPI; c = MPI.COMM_WORLD; e = os.environ;"
RANK += "told = c.gather((e['SLURMD_NODENAME'], e.get('CUDA_VISIBLE_DEVICES', 'none')));"
RANK += "c.rank or print('world', c.size, *(f'{node}:{gpus}' for node, gpus in told), flush=True)"
given = allocation(os.environ)
site = slurm_site.look(os.environ)
way = site.ways[0]
line = slurm_site.line(site, way, given.nodes, [sys.executable, "-c", RANK], given.cpus_per_task)
print(" ".join(line), flush=True)
sys.exit(subprocess.run(line, env=slurm_site.environment(site, way, os.environ, given.nodes), timeout=100).returncode)
"""


def world(slurm: Slurm, work: Path, way: str, *options: str) -> list[str]:
    """Return node:GPUs of each rank of the one world that a job with `options` makes."""
    if way == "pmix" and not has_pmix():
        pytest.skip("Slurm's plugin for PMIx does not find libpmix.so, which libpmix-dev brings")
    (work / "ways.sh").write_text(SCRIPT)
    (work / "ways.py").write_text(PROGRAM)
    environ = {VARIABLE: way, "PYTHONPATH": str(ROOT / "src"), "OMPI_MCA_mpi_yield_when_idle": "1"}
    number = slurm.submit(*options, "--output=ways.log", "ways.sh", environ=environ, cwd=work)
    ended, log = slurm.wait(number, 120), (work / "ways.log").read_text()
    assert ended["ExitCode"] == "0:0", log
    worlds = [row.split() for row in log.splitlines() if row.startswith("world ")]
    assert len(worlds) == 1, log
    assert int(worlds[0][1]) == len(worlds[0][2:])
    return worlds[0][2:]


@pytest.mark.parametrize("way", ["pmix", "mpirun"])
def test_each_node_has_its_own_number_of_tasks_and_rank_0_is_on_the_first(
    slurm: Slurm, tmp_path: Path, way: str
) -> None:
    ranks = world(slurm, tmp_path, way, "--nodes=3", "--ntasks=4", "--cpus-per-task=2")
    assert [rank.split(":")[0] for rank in ranks] == ["n1", "n1", "n2", "n3"]


def test_ranks_of_srun_have_the_gpu_that_slurm_gives_their_task(slurm: Slurm, tmp_path: Path) -> None:
    options = ["--nodes=2", "--ntasks-per-node=2", "--gpus-per-task=1"]
    assert world(slurm, tmp_path, "pmix", *options) == ["n1:0", "n1:1", "n2:0", "n2:1"]


@pytest.mark.parametrize("gpus", ["--gpus-per-task=1", "--gpus-per-node=2", "--gres=gpu:2"])
def test_ranks_of_mpirun_see_all_gpus_of_their_node_whatever_a_task_has(
    slurm: Slurm, tmp_path: Path, gpus: str
) -> None:
    ranks = world(slurm, tmp_path, "mpirun", "--nodes=2", "--ntasks-per-node=2", gpus)
    assert ranks == ["n1:0,1", "n1:0,1", "n2:0,1", "n2:0,1"]


@pytest.mark.parametrize(("way", "gpus"), [("pmix", ["n1:0", "n1:1", "n2:0"]), ("mpirun", ["n1:0", "n1:0", "n2:0"])])
def test_where_nodes_have_uneven_numbers_of_tasks_each_rank_of_srun_has_its_gpu_and_those_of_mpirun_share(
    slurm: Slurm, tmp_path: Path, way: str, gpus: list[str]
) -> None:
    assert world(slurm, tmp_path, way, "--nodes=2", "--ntasks=3", "--gpus-per-task=1") == gpus
