"""Know the ranks of the job: their hosts, their share of the cores and of the memory."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ollampi.mpiruntime.communicator import Communicator


@dataclass(frozen=True)
class RankFacts:
    """What one rank can use.

    cores: the numbers of the cores that it may run on; threads: its share of them; memory_bytes: what is free on its
    host, shared by the local_size ranks there.
    """

    rank: int
    host: str
    local_rank: int
    local_size: int
    cores: list[int]
    threads: int
    memory_bytes: int


def survey(comm: Communicator) -> list[RankFacts]:
    """Return the facts of all ranks, equal on every rank; collective."""
    mine = {"host": socket.gethostname(), "cores": sorted(os.sched_getaffinity(0)), "memory_bytes": free_memory()}
    told = [json.loads(m) for m in comm.collect(json.dumps(mine).encode())]
    facts = []
    for rank, fact in enumerate(told):
        peers = [r for r, other in enumerate(told) if other["host"] == fact["host"]]
        threads = _threads(fact["cores"], [told[r]["cores"] for r in peers])
        facts.append(RankFacts(rank=rank, local_rank=peers.index(rank), local_size=len(peers), threads=threads, **fact))
    return facts


def _threads(cores: list[int], local: list[list[int]]) -> int:
    """Return a rank's share of its cores: all of them where it is pinned apart, else an equal part of the host's."""
    sharing = sum(1 for other in local if set(other) & set(cores))
    return max(1, min(len(cores), cpu_quota() or len(cores)) // sharing)


def cpu_quota(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Return how many cores the cgroup (version 2) allows, at least 1, or None without a limit."""
    try:
        quota, period = (root / "cpu.max").read_text().split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else max(1, int(quota) // int(period))


def free_memory(
    meminfo: Path = Path("/proc/meminfo"),
    root: Path = Path("/sys/fs/cgroup"),
    membership: Path = Path("/proc/self/cgroup"),
) -> int:
    """Return the bytes that can still be taken on this host: what is available, within the limits of all cgroups."""
    fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    available = int(fields["MemAvailable"].split()[0]) * 1024
    return max(0, min([available, *_left_in_cgroups(root, membership)]))


def _left_in_cgroups(root: Path, membership: Path) -> Iterator[int]:
    """Yield what each memory limit of this process's cgroups leaves: its own and those above it, version 2 and 1."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        number, controllers, path = line.split(":", 2)
        own = Path(path.lstrip("/"))
        for folder in (own, *own.parents):  # in a container only the root may be there, which is then the own one
            if number == "0":
                yield from _left(root / folder, "memory.max", "memory.current", "")
            elif "memory" in controllers.split(","):
                yield from _left(root / "memory" / folder, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_")


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
