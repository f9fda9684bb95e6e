"""Carry the messages of the watchdogs through MPI."""

from __future__ import annotations

from typing import Any

_TAG = 1


class MpiPost:
    """The post of one rank over an MPI communicator that nobody else uses; used by one thread at a time.

    Nothing waits for a message to arrive: the rank that it is for may be gone.
    """

    def __init__(self, mpi: Any, comm: Any) -> None:
        self._mpi = mpi
        self._comm = comm
        self._sent: list[tuple[Any, bytes]] = []  # MPI reads a message until its request has passed
        self.rank: int = comm.Get_rank()
        self.size: int = comm.Get_size()

    def send(self, rank: int, message: bytes) -> None:
        """Send a message to a rank."""
        self._sent.append((self._comm.Isend([message, self._mpi.BYTE], rank, _TAG), message))

    def receive(self) -> list[tuple[int, bytes]]:
        """Return the messages that came since the last call, each with the rank that sent it."""
        self._sent = [(request, message) for request, message in self._sent if not request.Test()]
        messages = []
        status = self._mpi.Status()
        while (matched := self._comm.Improbe(self._mpi.ANY_SOURCE, _TAG, status)) is not None:
            buffer = bytearray(status.Get_count(self._mpi.BYTE))
            source = status.Get_source()
            matched.Recv([buffer, self._mpi.BYTE])
            messages.append((source, bytes(buffer)))
        return messages
