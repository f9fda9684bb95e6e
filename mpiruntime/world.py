"""Know the ranks of the job: their hosts, their share of the cores and of the memory."""

from __future__ import annotations

import json
import os
import socket
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


def free_memory(meminfo: Path = Path("/proc/meminfo"), root: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the bytes that can still be taken on this host: what is available, within the cgroup's limit."""
    fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    available = int(fields["MemAvailable"].split()[0]) * 1024
    try:
        limit, used = (root / "memory.max").read_text().strip(), int((root / "memory.current").read_text())
    except (OSError, ValueError):
        return available
    return available if limit == "max" else max(0, min(available, int(limit) - used))
