"""A job of two ranks, one to a host, as the engine tells of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ollampi.mpiruntime.cluster import Cluster, Gpu, Network, Node, Pace, Placement, Replica, Traffic

WORLD = 2


def a_node(rank: int, **fields: Any) -> Node:
    """Return the node of a rank; the last one has a GPU."""
    plain = Node(
        rank=rank,
        id=f"node-{rank}",
        name=f"host{rank}",
        role="worker" if rank else "mixed",
        host=f"host{rank}",
        status="online",
        uptime_s=61.5,
        cpu_cores=8,
        memory_total=64_000_000_000,
        memory_available=48_000_000_000,
        gpus=[Gpu("GPU of a test", 40, 30)] if rank == WORLD - 1 else [],
        models=[f"demo:latest:shard-{rank + 1}"],
    )
    return replace(plain, **fields)


def a_placement(name: str = "demo:latest", **fields: Any) -> Placement:
    """Return a model of 2 heads in two shards."""
    replica = Replica([0, 1], [100, 150], [[0, 1], [1, 2]], [[0, 1], [0, 1]], [[0, 8], [8, 16]], 5, 1, 0)
    return replace(Placement(name, WORLD, [replica], "auto", "all ranks hold one replica", 64), **fields)


def a_cluster(**fields: Any) -> Cluster:
    """Return the job: one model, one link that is slow in both ways."""
    network = Network([Pace(1, "host1", 0.003, 50e6)], [(8192, 30e-6), (1 << 20, 2e-3)])
    traffic = Traffic(successful=3, failed=1, cancelled=1, refused=2, seconds=10.0)
    nodes = [a_node(rank) for rank in range(WORLD)]
    plain = Cluster(WORLD, 61.5, "mpi", 11434, nodes, [a_placement()], traffic, network)
    return replace(plain, **fields)
