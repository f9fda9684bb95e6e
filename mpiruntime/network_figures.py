"""Measure at the start what the network between the hosts of a job can do, over MPI itself."""

from __future__ import annotations

from time import perf_counter, time

import torch
from torch import Tensor

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
    links = [pace(link, 0, rank, facts[rank].host) for rank in others]
    comm.all_reduce(torch.zeros(_LONG_BYTES // 4))  # for the first time, it takes far longer
    sums = measure({_SUM: comm.all_reduce}, comm, (SMALL_BYTES, _LONG_BYTES))[_SUM]
    return Network(links, sorted(sums.items()))


def pace(link: Link, first: int, second: int, host: str, long_bytes: int = _LONG_BYTES) -> Pace:
    """Return what the link between two ranks can do; collective over all of the link, the figures are the first's.

    host: the second's.
    """
    tiny = min(_there_and_back(link, first, second, _TINY_BYTES) for _ in range(_TINY_ROUNDS))
    long = min(_there_and_back(link, first, second, long_bytes) for _ in range(_LONG_ROUNDS))
    return Pace(second, host, tiny, 2 * long_bytes / max(long - tiny, 1e-9))


def ahead(link: Link, first: int, second: int) -> tuple[float, float]:
    """Return by how many seconds the second rank's clock is ahead of the first's, and how far off that may be.

    Collective over all of the link, the figures are the first's. The quickest of some round trips counts: half of it
    is how long ago the answer was written, give or take as much.
    """
    found = []
    for _ in range(_TINY_ROUNDS):
        began, answer = time(), torch.zeros(1, dtype=torch.float64)
        _swap(link, first, second, answer)
        if link.rank == second:
            answer.fill_(time())
        _swap(link, second, first, answer)
        trip = time() - began
        found.append((trip / 2, float(answer) - began - trip / 2))
    doubt, seconds = min(found)
    return seconds, doubt


def _there_and_back(link: Link, first: int, second: int, size: int) -> float:
    """Return the seconds in which so many bytes go from a rank to another one and back; collective."""
    buffer = torch.zeros(size, dtype=torch.uint8)
    began = perf_counter()
    _swap(link, first, second, buffer)
    _swap(link, second, first, buffer)
    return perf_counter() - began


def _swap(link: Link, sender: int, receiver: int, buffer: Tensor) -> None:
    """Send the bytes of buffer [n] from a rank to another one; collective over the link, where others do nothing."""
    parcel = buffer.view(torch.uint8)
    sends = [(receiver, parcel)] if link.rank == sender else []
    receives = [(sender, parcel)] if link.rank == receiver else []
    link.swap(sends, receives, f"the measurement of the link between ranks {sender} and {receiver}")
