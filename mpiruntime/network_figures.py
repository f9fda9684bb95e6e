"""Measure at the start what the network between the hosts of a job can do, over MPI itself."""

from __future__ import annotations

from time import perf_counter

import torch

from ollampi.mpiruntime.cluster import Network, Pace
from ollampi.mpiruntime.communicator import Communicator
from ollampi.mpiruntime.exchange import SMALL_BYTES, Linked
from ollampi.mpiruntime.exchange_plan import Choice
from ollampi.mpiruntime.hierarchical import by_host
from ollampi.mpiruntime.link import Link
from ollampi.mpiruntime.measuring import measure
from ollampi.mpiruntime.world import RankFacts

_TINY_BYTES, _LONG_BYTES = 8, 1 << 17  # a network of 10 Mbit/s takes 0.2 s for these there and back
_TINY_ROUNDS, _LONG_ROUNDS = 16, 3
_SUM = Choice("MPI", 0)


def measure_network(comm: Communicator, facts: list[RankFacts], limit_s: float) -> Network | None:
    """Return what the links from rank 0 to one rank of each other host can do, and sums over all ranks; collective.

    The same sums on all ranks, the links on rank 0 only. Where all ranks share a host, the link is to rank 1. None for
    a world of one rank, or where the communicator has no links. The best of some rounds counts: no pause of a busy
    machine touches it.
    """
    if comm.size == 1 or not isinstance(comm, Linked):
        return None
    link = comm.link(range(comm.size), limit_s)
    if link is None:
        return None
    others = [ranks[0] for ranks in by_host(facts) if 0 not in ranks] or [1]
    links = [_pace(link, rank, facts[rank].host) for rank in others]
    comm.all_reduce(torch.zeros(_LONG_BYTES // 4))  # for the first time, it takes far longer
    sums = measure({_SUM: comm.all_reduce}, comm, (SMALL_BYTES, _LONG_BYTES))[_SUM]
    return Network(links, sorted(sums.items()))


def _pace(link: Link, rank: int, host: str) -> Pace:
    """Return what the link between rank 0 and another one can do; collective, the figures are rank 0's."""
    tiny = min(_there_and_back(link, rank, _TINY_BYTES) for _ in range(_TINY_ROUNDS))
    long = min(_there_and_back(link, rank, _LONG_BYTES) for _ in range(_LONG_ROUNDS))
    return Pace(rank, host, tiny, 2 * _LONG_BYTES / max(long - tiny, 1e-9))


def _there_and_back(link: Link, rank: int, size: int) -> float:
    """Return the seconds in which so many bytes go from rank 0 to another one and back; collective."""
    buffer = torch.zeros(size, dtype=torch.uint8)
    peer = {0: rank, rank: 0}.get(link.rank)
    began = perf_counter()
    for sender in (0, rank):
        sends = [(peer, buffer)] if peer is not None and link.rank == sender else []
        receives = [(peer, buffer)] if peer is not None and link.rank != sender else []
        link.swap(sends, receives, "the measurement of the network")
    return perf_counter() - began
