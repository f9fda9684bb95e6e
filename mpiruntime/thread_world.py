"""Run a world of N ranks as N threads of one process, for tests and for trying a world without MPI."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from ollampi.mpiruntime.communicator import Communicator, summable
from ollampi.mpiruntime.errors import RankFailure

T = TypeVar("T")


class _Meeting:
    """The place where the ranks of a thread world leave what the others take."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.slots: list[Any] = [None] * size
        self.barrier = threading.Barrier(size)
        self.notes: list[int] = []

    def exchange(self, rank: int, value: Any) -> list[Any]:
        """Return the values of all ranks; raise RankFailure where a rank failed."""
        self.slots[rank] = value
        try:
            self.barrier.wait()
            everything = list(self.slots)
            self.barrier.wait()  # nobody overwrites a slot before all have read
        except threading.BrokenBarrierError as e:
            raise RankFailure(f"rank {rank} cannot go on: another rank of this world failed") from e
        return everything


class ThreadCommunicator:
    """One rank of a thread world."""

    def __init__(self, rank: int, meeting: _Meeting) -> None:
        self.rank = rank
        self.size = meeting.size
        self._meeting = meeting

    def all_reduce(self, x: Tensor) -> Tensor:
        """Return the sum of x over all ranks, in fp64 where x is, else in fp32; added in rank order."""
        parts = self._meeting.exchange(self.rank, summable(x))
        total: Tensor = parts[0].clone()
        for part in parts[1:]:
            total += part
        return total

    def gather(self, x: Tensor) -> Tensor | None:
        """Return x [B, d] of all ranks side by side on rank 0 and None elsewhere."""
        parts = self._meeting.exchange(self.rank, x.float())
        return torch.cat(parts, dim=-1) if self.rank == 0 else None

    def broadcast(self, message: bytes | None) -> bytes:
        """Return rank 0's message."""
        sent: bytes = self._meeting.exchange(self.rank, message)[0]
        return sent

    def collect(self, message: bytes) -> list[bytes]:
        """Return the messages of all ranks."""
        return self._meeting.exchange(self.rank, message)

    def share(self, x: Tensor) -> None:
        """Fill x [...] with rank 0's."""
        parts = self._meeting.exchange(self.rank, x.clone() if self.rank == 0 else None)
        x.copy_(parts[0])

    def notify(self, note: int) -> None:
        """Leave a note for rank 0."""
        self._meeting.notes.append(note)

    def notes(self) -> list[int]:
        """Return the notes since the last call."""
        notes, self._meeting.notes = self._meeting.notes, []
        return notes


def run_threads(size: int, work: Callable[[Communicator], T]) -> list[T]:
    """Return what `work` returns on each of `size` ranks, in rank order.

    A rank that raises breaks every collective of the others; its exception is raised here.
    """
    meeting = _Meeting(size)
    results: list[Any] = [None] * size
    failures: list[BaseException] = []

    def rank_main(rank: int) -> None:
        """Do the work of one rank in its thread, and note what it returns or raises."""
        try:
            results[rank] = work(ThreadCommunicator(rank, meeting))
        except BaseException as e:
            failures.append(e)
            meeting.barrier.abort()

    threads = [threading.Thread(target=rank_main, args=(rank,), daemon=True) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise next((e for e in failures if not isinstance(e, RankFailure)), failures[0])
    return results
