"""Build the line that starts the server of a sweep's points: on this host, in a Slurm job, or over a laboratory."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from support.netlab import Lab
from support.servers import mpirun

from ollampi.launcher import slurm_site
from ollampi.launcher.slurm_nodes import Node, allocation
from ollampi.launcher.slurm_trial import ways_that_work
from ollampi.launcher.waiting import waiting
from ollampi.mpiruntime.errors import ConfigError

HOSTS = "OLLAMPI_SWEEP_HOSTS"  # a laboratory of hosts: JSON with pids and agent of support.netlab's Lab
_TIED = """
import os, sys
from ollampi.mpiruntime.lifetime import die_with
die_with(int(sys.argv[1]))
os.execvp(sys.argv[2], sys.argv[2:])
"""
_IN_JOB = ("SLURM_JOB_ID", "SLURMD_NODENAME")  # a shell of salloc has the first alone, and may be on another host


def start_line(ranks: int, program: list[str]) -> tuple[list[str], dict[str, str]]:
    """Return the line and the environment that run a program on so many ranks.

    They are on the hosts that HOSTS names, in a batch script of Slurm on its job's nodes, else on this host, and are
    killed with this process, so that a sweep that is killed leaves no server behind. Raise ConfigError or WorldError
    where that cannot be.
    """
    if HOSTS in os.environ:
        line, environ = _laboratory_line(ranks, program)
    elif all(os.environ.get(name) for name in _IN_JOB):
        line, environ = _job_line(ranks, program)
    else:
        line, environ = mpirun(ranks, program)
    return [sys.executable, "-c", _TIED, str(os.getpid()), *line], environ


def first_tasks(nodes: Sequence[Node], ranks: int) -> list[Node]:
    """Return the nodes with the first so many tasks of a job; raise ConfigError where it has fewer."""
    found: list[Node] = []
    for node in nodes:
        if tasks := min(node.tasks, ranks - sum(each.tasks for each in found)):
            found.append(Node(node.name, tasks))
    if (has := sum(node.tasks for node in nodes)) < ranks:
        raise ConfigError(f"the server has {ranks} ranks and this job {has} tasks; ask sbatch for --ntasks={ranks}")
    return found


def _job_line(ranks: int, program: list[str]) -> tuple[list[str], dict[str, str]]:
    """Return line and environment of a start in this process' job, in the way that its site has."""
    given, site = allocation(os.environ), slurm_site.look(os.environ)
    nodes = first_tasks(given.nodes, ranks)

    def environment(way: slurm_site.Way) -> dict[str, str]:
        return slurm_site.environment(site, way, os.environ, nodes)

    way = ways_that_work(site, nodes, given.cpus_per_task, environment, _say)[0]
    environ = environment(way)
    environ |= waiting([word for word in program if "=" in word], max(node.tasks for node in nodes), environ)
    _say(f"starting ranks on {', '.join(f'{node.name} ({node.tasks})' for node in nodes)} with {way.program}")
    return slurm_site.line(site, way, nodes, program, given.cpus_per_task), environ


def _laboratory_line(ranks: int, program: list[str]) -> tuple[list[str], dict[str, str]]:
    """Return line and environment of a start over a laboratory's hosts, as evenly as can be."""
    told = json.loads(os.environ[HOSTS])
    net = Lab(told["pids"], Path(told["agent"]))
    count = len(net.pids)
    return net.mpirun([(ranks + count - 1 - host) // count for host in range(count)], program)


def _say(text: str) -> None:
    print(f"sweep: {text}", file=sys.stderr, flush=True)
