"""Carry what rank 0 tells ranks, and what they answer, through MPI: point to point, in order, without waiting."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

_TOLD_TAG, _ANSWER_TAG = 4, 5
_SPIN_S = 0.02  # a waiting rank polls without sleeping for this long: a running answer sends a step far sooner
_LONGEST_SLEEP_S = 0.006  # what the first token after idling may wait for, against the cost of waking up


class MpiMail:
    """The mail of one rank over a communicator of all ranks; used by the main thread.

    MPI hands the messages of one rank to another over in the order in which they were sent, and rank 0 alone tells: so
    all ranks see what concerns them in one order.
    """

    def __init__(self, mpi: Any, comm: Any) -> None:
        self._mpi = mpi
        self._comm = comm
        self._sent: list[tuple[Any, bytes]] = []  # MPI reads a message until its request has passed

    def tell(self, message: bytes, ranks: Sequence[int]) -> None:
        """Send a message from rank 0 to some ranks; does not wait until they take it."""
        self._prune()
        self._sent += [(self._comm.Isend([message, self._mpi.BYTE], r, _TOLD_TAG), message) for r in ranks if r]

    def settle(self) -> None:
        """Return when MPI needs this rank no more to bring what was sent to where it goes."""
        self._mpi.Request.Waitall([request for request, _ in self._sent])
        self._sent = []

    def hear(self, look: Callable[[], None] = lambda: None) -> bytes:
        """Return the next message that rank 0 tells this rank; uses little of a core where it takes long.

        look: called at first, and again and again for as long as there is none.
        """
        return self.receive(_TOLD_TAG, look)

    def answer(self, message: bytes) -> None:
        """Send a message to rank 0, from any other rank; does not wait."""
        self._prune()
        self._sent.append((self._comm.Isend([message, self._mpi.BYTE], 0, _ANSWER_TAG), message))

    def answers(self) -> list[bytes | bytearray]:
        """Return on rank 0 what was answered since the last call."""
        found: list[bytes | bytearray] = []
        status = self._mpi.Status()
        while (matched := self._comm.Improbe(self._mpi.ANY_SOURCE, _ANSWER_TAG, status)) is not None:
            found.append(self._taken(matched, status))
        return found

    def receive(self, tag: int, look: Callable[[], None] = lambda: None) -> bytes:
        """Return the next message of rank 0 with a tag. A waiting rank polls: it spins, then sleeps in between."""
        spin_until = time.monotonic() + _SPIN_S
        sleep_s = 0.0002
        look()
        while (matched := self._comm.Improbe(0, tag, status := self._mpi.Status())) is None:
            if time.monotonic() < spin_until:
                os.sched_yield()
            else:
                time.sleep(sleep_s)
                sleep_s = min(2 * sleep_s, _LONGEST_SLEEP_S)
                look()
        return bytes(self._taken(matched, status))

    def _taken(self, matched: Any, status: Any) -> bytearray:
        """Return a message that has come."""
        buffer = bytearray(status.Get_count(self._mpi.BYTE))
        matched.Recv([buffer, self._mpi.BYTE])
        return buffer

    def _prune(self) -> None:
        """Forget what has arrived."""
        if self._sent:
            self._sent = [(request, message) for request, message in self._sent if not request.Test()]
