"""Pass bytes between the ranks of a group through MPI, point to point, and see who does not come."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

from ollampi.mpiruntime.errors import LostRank
from ollampi.mpiruntime.link import Parcel

Late = Callable[[str, list[int]], None]  # told the collective, and the ranks of the world whose bytes are missing
_TAG = 3
_SPIN_S, _NAP_S = 0.001, 0.00005  # measured in docs/exchange.md


def give_up(what: str, missing: list[int]) -> None:
    """Raise LostRank with the ranks of the world that are missing in a collective."""
    ranks = f"rank {missing[0]} does" if len(missing) == 1 else f"ranks {', '.join(map(str, missing))} do"
    raise LostRank(f"{ranks} not come to {what}")


class MpiLink:
    """The link of one rank over an MPI communicator that nobody else uses; used by one thread at a time.

    ranks: those of the world, in the order of their ranks in the communicator; late: called every limit_s for as long
    as a swap lacks bytes, and may raise; quiet: whether to sleep between two looks from the beginning, since another
    thread computes, and not only where a swap takes long. A rank that polls gives way to others on its core.
    """

    def __init__(
        self, mpi: Any, comm: Any, ranks: Sequence[int], limit_s: float, late: Late = give_up, quiet: bool = False
    ) -> None:
        self._mpi = mpi
        self._comm = comm
        self._ranks = list(ranks)
        self._limit_s = limit_s
        self._late = late
        self._spin_s = 0.0 if quiet else _SPIN_S
        self._open: list[Any] = []
        self.rank: int = comm.Get_rank()
        self.size: int = comm.Get_size()

    def swap(self, sends: Sequence[Parcel], receives: Sequence[Parcel], what: str) -> None:
        """Send bytes and fill buffers with those of others, uint8 [n] each; moves buffers, collective.

        Raise what `late` raises; MPI may then still write into the buffers, which this object keeps.
        """
        byte = self._mpi.BYTE
        peers = [peer for peer, _ in (*receives, *sends)]
        self._open = [self._comm.Irecv([buffer.numpy(), byte], peer, _TAG) for peer, buffer in receives]
        self._open += [self._comm.Isend([buffer.numpy(), byte], peer, _TAG) for peer, buffer in sends]
        if not self._mpi.Request.Testall(self._open):
            self._wait(peers, what)

    def _wait(self, peers: list[int], what: str) -> None:
        """Return when all open requests have passed; peers: the other rank of each."""
        now = time.monotonic()
        nap_from, late_from = now + self._spin_s, now + self._limit_s
        while not self._mpi.Request.Testall(self._open):
            now = time.monotonic()
            if now < nap_from:
                os.sched_yield()
            else:
                time.sleep(_NAP_S)
            if now > late_from:
                missing = {peer for peer, request in zip(peers, self._open, strict=True) if not request.Get_status()}
                self._late(what, sorted(self._ranks[peer] for peer in missing))
                late_from = now + self._limit_s
