"""Run a world of N ranks as N threads of one process, for tests and for trying a world without MPI."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

import torch
from torch import Tensor

from ollampi.mpiruntime.communicator import BySums, summable
from ollampi.mpiruntime.errors import RankFailure
from ollampi.mpiruntime.link import Parcel

T = TypeVar("T")
_LOOK_S = 0.002


class _Meeting:
    """The place where the ranks of a thread world leave what the others take."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.slots: list[Any] = [None] * size
        self.barrier = threading.Barrier(size)
        self.notes: list[int] = []
        self.told: list[SimpleQueue[bytes | None]] = [SimpleQueue() for _ in range(size)]  # None: a rank failed
        self.answered: deque[bytes] = deque()
        self.inner: list[_Meeting] = []  # of links and parts
        self._lock = threading.Lock()
        self._parts: dict[tuple[int, ...], _Meeting] = {}
        self._broken = False

    def part(self, ranks: tuple[int, ...]) -> _Meeting:
        """Return the place where these ranks alone meet, one for each set of ranks."""
        with self._lock:
            if ranks not in self._parts:
                self._parts[ranks] = _Meeting(len(ranks))
                self.inner.append(self._parts[ranks])
        if self._broken:
            self._parts[ranks].abort()
        return self._parts[ranks]

    def drop(self, meeting: _Meeting) -> None:
        """Forget the place of a part; called on all its ranks before any of them asks for one anew."""
        with self._lock:
            self._parts = {ranks: part for ranks, part in self._parts.items() if part is not meeting}
            self.inner = [inner for inner in self.inner if inner is not meeting]

    @property
    def broken(self) -> bool:
        """Return whether a rank failed."""
        return self._broken

    def exchange(self, rank: int, value: Any, take: Callable[[list[Any]], Any] = list) -> Any:
        """Return what `take` makes of the list of all ranks' values; raise RankFailure where a rank failed."""
        self.slots[rank] = value
        try:
            self.barrier.wait()
            everything = take(self.slots)
            self.barrier.wait()  # nobody overwrites a slot, or what is in it, before all have read
        except threading.BrokenBarrierError as e:
            raise RankFailure(f"rank {rank} cannot go on: another rank of this world failed") from e
        return everything

    def abort(self) -> None:
        """Let all ranks that wait here, at a link or in a part fail."""
        self._broken = True
        self.barrier.abort()
        for letters in self.told:
            letters.put(None)
        for meeting in list(self.inner):
            meeting.abort()


class ThreadLink:
    """The link of one rank of a thread world over a meeting that nobody else uses."""

    def __init__(self, rank: int, meeting: _Meeting) -> None:
        self.rank = rank
        self.size = meeting.size
        self._meeting = meeting

    def swap(self, sends: Sequence[Parcel], receives: Sequence[Parcel], what: str) -> None:
        """Send bytes and fill buffers with those of others, uint8 [n] each; collective.

        Raise ValueError where what one rank sends is not what another one wants to receive.
        """

        def take(sent: list[Sequence[Parcel]]) -> None:
            """Copy what is for this rank from what all ranks send."""
            found = [(r, part) for r, parcels in enumerate(sent) for to, part in parcels if to == self.rank]
            told, wanted = [(r, part.numel()) for r, part in found], [(r, part.numel()) for r, part in receives]
            if sorted(told) != sorted(wanted) or 0 in [count for _, count in told]:
                raise ValueError(f"in {what} rank {self.rank} is sent (rank, bytes) {told} and wants {wanted}")
            for source, part in receives:
                at = next(i for i, (r, _) in enumerate(found) if r == source)
                part.copy_(found.pop(at)[1])

        self._meeting.exchange(self.rank, sends, take)


class ThreadCommunicator(BySums):
    """One rank of a thread world."""

    def __init__(self, rank: int, meeting: _Meeting, whole: _Meeting | None = None) -> None:
        self.rank = rank
        self.size = meeting.size
        self._meeting = meeting
        self._whole = whole

    def all_reduce(self, x: Tensor) -> Tensor:
        """Return the sum of x over all ranks, in fp64 where x is, else in fp32; added in rank order."""
        parts: list[Tensor] = self._meeting.exchange(self.rank, summable(x))
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
        told: list[bytes] = self._meeting.exchange(self.rank, message)
        return told

    def share(self, x: Tensor) -> None:
        """Fill x [...] with rank 0's."""
        parts = self._meeting.exchange(self.rank, x.clone() if self.rank == 0 else None)
        x.copy_(parts[0])

    def link(self, ranks: Sequence[int], limit_s: float = 0.0, quiet: bool = False) -> ThreadLink | None:
        """Return a new link between some ranks, which count in this order, and None on the others; collective.

        It knows no limit, and may be used by any thread.
        """
        meeting = _Meeting(len(ranks))
        if self.rank == 0:
            self._meeting.inner.append(meeting)
        shared: _Meeting = self._meeting.exchange(self.rank, meeting)[0]
        return ThreadLink(list(ranks).index(self.rank), shared) if self.rank in ranks else None

    def tell(self, message: bytes, ranks: Sequence[int]) -> None:
        """Leave a message for some ranks."""
        for rank in ranks:
            if rank:
                self._meeting.told[rank].put(message)

    def settle(self) -> None:
        """Do nothing: what was left will be found."""

    def hear(self, look: Callable[[], None] = lambda: None) -> bytes:
        """Return the next message of rank 0, looking every few milliseconds; raise RankFailure where a rank failed."""
        message = self._next(look)
        if message is None:
            raise RankFailure(f"rank {self.rank} cannot go on: another rank of this world failed")
        return message

    def _next(self, look: Callable[[], None]) -> bytes | None:
        """Return what was left for this rank next."""
        while True:
            look()
            with suppress(Empty):
                return self._meeting.told[self.rank].get(timeout=_LOOK_S)

    def answer(self, message: bytes) -> None:
        """Leave a message for rank 0."""
        self._meeting.answered.append(message)

    def answers(self) -> list[bytes | bytearray]:
        """Return the answers since the last call; raise RankFailure where a rank failed."""
        if self._meeting.broken:
            raise RankFailure(f"rank {self.rank} cannot go on: another rank of this world failed")
        return [self._meeting.answered.popleft() for _ in range(len(self._meeting.answered))]

    def notify(self, note: int) -> None:
        """Leave a note for rank 0."""
        self._meeting.notes.append(note)

    def notes(self) -> list[int]:
        """Return the notes since the last call."""
        notes, self._meeting.notes = self._meeting.notes, []
        return notes

    def within(self, ranks: Sequence[int]) -> ThreadCommunicator:
        """Return the communicator of `ranks`; two of the same ranks must not be used at a time."""
        part = self._meeting.part(tuple(ranks))
        return ThreadCommunicator(list(ranks).index(self.rank), part, self._meeting)

    def leave(self) -> None:
        """Forget the place where the ranks of a part met; collective."""
        whole, self._whole = self._whole, None
        if whole is not None:
            self._meeting.exchange(self.rank, None, lambda _: whole.drop(self._meeting))


def run_threads(size: int, work: Callable[[ThreadCommunicator], T]) -> list[T]:
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
            meeting.abort()

    threads = [threading.Thread(target=rank_main, args=(rank,), daemon=True) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise next((e for e in failures if not isinstance(e, RankFailure)), failures[0])
    return results
