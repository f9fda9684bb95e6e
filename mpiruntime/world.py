"""Know the ranks of the job: their hosts, their share of the cores and of the memory."""

from __future__ import annotations

import json
import os
import resource
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from ollampi.mpiruntime.cgroups import MEMBERSHIP, ROOT, limiting
from ollampi.mpiruntime.communicator import Communicator
from ollampi.mpiruntime.cores import cores_per_task, slices, usable_cores

_UNLIMITED = resource.RLIM_INFINITY


@dataclass(frozen=True)
class RankFacts:
    """What one rank can use.

    cores: the numbers of the cores that it may run on; usable: how many of them the ranks of its host may keep busy;
    threads: its share of these; memory_bytes: what is free on its host, shared by the local_size ranks there, of
    memory_total. device: as torch calls it; of a GPU its name, an identity that no other GPU has, and its free bytes
    (mpiruntime.devices).
    """

    rank: int
    host: str
    local_rank: int
    local_size: int
    cores: list[int]
    usable: int
    threads: int
    memory_bytes: int
    device: str = "cpu"
    gpu: str = ""
    identity: str = ""
    gpu_bytes: int = 0
    memory_total: int = 0


def survey(comm: Communicator) -> list[RankFacts]:
    """Return the facts of all ranks, equal on every rank; collective."""
    cores = sorted(os.sched_getaffinity(0))
    mine = {"host": socket.gethostname(), "cores": cores, "usable": usable_cores(os.environ, len(cores))}
    mine |= {"per_task": cores_per_task(os.environ, len(cores)), "memory_bytes": free_memory()}
    mine["memory_total"] = total_memory()
    told = [json.loads(m) for m in comm.collect(json.dumps(mine).encode())]
    facts = []
    for rank, fact in enumerate(told):
        peers = [r for r, other in enumerate(told) if other["host"] == fact["host"]]
        share = fact["usable"] // _sharing(fact["cores"], [told[r]["cores"] for r in peers])
        threads = max(1, min(share, fact.pop("per_task")))
        facts.append(RankFacts(rank=rank, local_rank=peers.index(rank), local_size=len(peers), threads=threads, **fact))
    return facts


def crowded(facts: list[RankFacts], rank: int, threads: int) -> bool:
    """Return whether more threads compute on the cores of a rank, if each has `threads`, than may be busy there."""
    fact = facts[rank]
    return threads * _sharing(fact.cores, [f.cores for f in facts if f.host == fact.host]) > fact.usable


def apart(facts: list[RankFacts]) -> list[RankFacts]:
    """Return the facts with each rank on cores of its own, where such a cut makes sense.

    It does where ranks share one set of cores that has enough for all, and nothing says that others use it too.
    """
    own = [_own_cores(facts, fact.rank) for fact in facts]
    return [
        fact if cores is None else replace(fact, cores=cores, usable=len(cores))
        for fact, cores in zip(facts, own, strict=True)
    ]


def _own_cores(facts: list[RankFacts], rank: int) -> list[int] | None:
    """Return the part of its cores that a rank has for itself, or None where they are not cut."""
    fact = facts[rank]
    peers = [f for f in facts if f.host == fact.host and set(f.cores) & set(fact.cores)]
    if len(peers) == 1 or any(f.cores != fact.cores for f in peers) or fact.usable < len(fact.cores):
        return None
    parts = slices(fact.cores, len(peers))
    return None if parts is None else parts[peers.index(fact)]


def _sharing(cores: list[int], local: list[list[int]]) -> int:
    """Return how many of the sets of cores on a host have any of `cores`, its own set included."""
    return sum(1 for other in local if set(other) & set(cores))


def free_memory(meminfo: Path = Path("/proc/meminfo"), root: Path = ROOT, membership: Path = MEMBERSHIP) -> int:
    """Return the bytes that can still be taken on this host: what is available, within the limits of all cgroups."""
    return max(0, min([_meminfo(meminfo, "MemAvailable"), *_left_in_cgroups(root, membership)]))


def own_memory(status: Path = Path("/proc/self/status")) -> int | None:
    """Return the bytes that the limits of this process (ulimit -d and -v) still let it take, None without any."""
    limits = {"VmData": resource.RLIMIT_DATA, "VmSize": resource.RLIMIT_AS}
    given = {name: soft for name, kind in limits.items() if (soft := resource.getrlimit(kind)[0]) != _UNLIMITED}
    return max(0, min(soft - _meminfo(status, name) for name, soft in given.items())) if given else None


def total_memory(meminfo: Path = Path("/proc/meminfo"), root: Path = ROOT, membership: Path = MEMBERSHIP) -> int:
    """Return the bytes that this host has, or the tightest of its cgroups."""
    return min([_meminfo(meminfo, "MemTotal"), *_limits(root, membership)])


def _meminfo(path: Path, name: str) -> int:
    """Return a field of /proc/meminfo in bytes."""
    fields = dict(line.split(":", 1) for line in path.read_text().splitlines())
    return int(fields[name].split()[0]) * 1024


def _limits(root: Path, membership: Path) -> Iterator[int]:
    """Yield each memory limit of this process's cgroups."""
    for version, folder in limiting("memory", root, membership):
        with suppress(OSError, ValueError):  # "max" is no number
            yield int((folder / ("memory.max" if version == 2 else "memory.limit_in_bytes")).read_text())


def _left_in_cgroups(root: Path, membership: Path) -> Iterator[int]:
    """Yield what each memory limit of this process's cgroups leaves."""
    for version, folder in limiting("memory", root, membership):
        if version == 2:
            yield from _left(folder, "memory.max", "memory.current", "")
        else:
            yield from _left(folder, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_")


def _left(folder: Path, limit_name: str, used_name: str, prefix: str) -> Iterator[int]:
    """Yield the bytes that a cgroup leaves, if it has a limit; cached files count as used but give way."""
    try:
        limit = (folder / limit_name).read_text().strip()
        used = int((folder / used_name).read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return
    if limit != "max":
        cached = sum(int(stat.get(f"{prefix}{kind}_file", 0)) for kind in ("active", "inactive"))
        yield int(limit) - used + cached
