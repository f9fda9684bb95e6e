"""Know how many cores this process may use, and keep ranks of one host on cores of their own."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path

from ollampi.mpiruntime.cgroups import MEMBERSHIP, ROOT, limiting

_TOPOLOGY = Path("/sys/devices/system/cpu")


def usable_cores(environ: Mapping[str, str], cores: int, root: Path = ROOT, membership: Path = MEMBERSHIP) -> int:
    """Return how many of the `cores` in its affinity mask all ranks of this host may keep busy, at least 1.

    Quotas of cgroups and what Slurm gave the job on this host can be less.
    """
    limits = [cores, *_quotas(root, membership), *_numbers(environ, "SLURM_CPUS_ON_NODE")]
    return max(1, min(limits))


def cores_per_task(environ: Mapping[str, str], cores: int) -> int:
    """Return how many of the `cores` one rank may keep busy: Slurm may have been asked for fewer for each task."""
    return min([cores, *_numbers(environ, "SLURM_CPUS_PER_TASK")])


def slices(cores: Sequence[int], count: int, topology: Path = _TOPOLOGY) -> list[list[int]] | None:
    """Return `count` runs of cores that tile `cores`; None if too few.

    Threads of one physical core are side by side, as are cores that share a package and a NUMA node.
    """
    if count > len(cores):
        return None
    ordered = sorted(cores, key=lambda core: (*_place(core, topology), core))
    cuts = [len(cores) * i // count for i in range(count + 1)]
    return [sorted(ordered[a:b]) for a, b in pairwise(cuts)]


@contextmanager
def all_cores() -> Iterator[None]:
    """Let processes that the block starts run wherever any thread of this one may, also where this thread is pinned."""
    own = os.sched_getaffinity(0)
    everywhere = set(own)
    for thread in os.listdir("/proc/self/task"):
        with suppress(ProcessLookupError):  # it has ended meanwhile
            everywhere |= os.sched_getaffinity(int(thread))
    os.sched_setaffinity(0, everywhere)
    try:
        yield
    finally:
        os.sched_setaffinity(0, own)


def _place(core: int, topology: Path) -> tuple[int, int, int]:
    """Return the package, the NUMA node and the physical core of a core, zeros where the kernel does not tell."""
    folder = topology / f"cpu{core}"
    numa = [int(path.name.removeprefix("node")) for path in folder.glob("node[0-9]*")]
    try:
        package, physical = [
            int((folder / "topology" / name).read_text()) for name in ("physical_package_id", "core_id")
        ]
    except (OSError, ValueError):
        return 0, 0, 0
    return package, min(numa, default=0), physical


def _numbers(environ: Mapping[str, str], name: str) -> list[int]:
    """Return the value of a variable, where it is a positive number."""
    text = environ.get(name, "")
    return [int(text)] if text.isdigit() and int(text) else []


def _quotas(root: Path, membership: Path) -> Iterator[int]:
    """Yield the whole cores that each limiting cgroup allows, where it has a quota."""
    for version, folder in limiting("cpu", root, membership):
        try:
            if version == 2:
                quota, period = (folder / "cpu.max").read_text().split()
            else:
                quota, period = [(folder / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period")]
        except (OSError, ValueError):
            continue
        if quota not in ("max", "-1"):
            yield int(quota) // int(period)
