"""Define what ranks say to each other, and the communicator of a world of one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor


def _see_nothing() -> None:
    """Do nothing."""


class Communicator(Protocol):
    """What the ranks of one tensor-parallel group do together. Every call is collective: all ranks make it, in the
    same order. Tensors travel as buffers, messages as bytes; nothing is pickled."""

    rank: int
    size: int

    @property
    def wire_bytes(self) -> int:
        """Return how many bytes this rank has sent to others and received so far, where that is counted, else 0."""

    def all_reduce(self, x: Tensor) -> Tensor:
        """Return the sum of x [...] over all ranks, the same bits on every rank; x has one shape everywhere.

        In fp64 where x is, else in fp32.
        """

    def all_reduce_later(self, x: Tensor) -> Callable[[], Tensor]:
        """Return what waits for the sum of x [...] that `all_reduce` returns; it is on its way from now on.

        x must not change before. Ranks start sums and wait for them in one order; a sum that is waited for is the
        oldest.
        """

    def share_rows(self, rows: Tensor, owners: Tensor) -> Tensor:
        """Return rows [T, D] of which each is as its owner has it, in fp32; owners int64 [T], equal on every rank.

        rows of others, which are not read, have one shape and dtype everywhere.
        """

    def gather(self, x: Tensor) -> Tensor | None:
        """Return the x [B, d] of all ranks side by side as [B, sum of d] in fp32 on rank 0 and None elsewhere.

        B is equal on all ranks, d need not be.
        """

    def broadcast(self, message: bytes | None) -> bytes:
        """Return on every rank the message that rank 0 passes; the others pass None. A rank that waits stays quiet."""

    def collect(self, message: bytes) -> list[bytes]:
        """Return on every rank the messages of all ranks, in rank order."""

    def share(self, x: Tensor) -> None:
        """Fill x [...] on every rank with rank 0's; contiguous, of one shape and dtype everywhere. Moves buffers."""

    def tell(self, message: bytes, ranks: Sequence[int]) -> None:
        """Send a message from rank 0 to some of the others, which `hear` all theirs in this order. Does not wait."""

    def settle(self) -> None:
        """Return when nothing that `tell` or `answer` sent needs this rank any more to arrive. Not collective."""

    def hear(self, look: Callable[[], None] = _see_nothing) -> bytes:
        """Return the next message that rank 0 tells this rank, another one than rank 0; waits quietly.

        look: called at first, and every few milliseconds for as long as there is none.
        """

    def answer(self, message: bytes) -> None:
        """Send a message to rank 0 from any other rank. Does not wait."""

    def answers(self) -> list[bytes | bytearray]:
        """Return on rank 0 what was answered since the last call, in order of arrival. Does not wait."""

    def notify(self, note: int) -> None:
        """Send a small number to rank 0, from any rank and at any time. Not collective."""

    def notes(self) -> list[int]:
        """Return on rank 0 what `notify` sent since the last call. Not collective."""

    def within(self, ranks: Sequence[int]) -> Communicator:
        """Return the communicator of `ranks`, of which this rank is one, numbered in their order.

        Collective over these ranks alone; they ascend.
        """

    def leave(self) -> None:
        """Free what belongs to this communicator alone, which is used no more; collective. The world's stays."""


def summable(x: Tensor) -> Tensor:
    """Return x [...] in the dtype in which it is summed over ranks: fp64 stays, anything else becomes fp32."""
    return x if x.dtype == torch.float64 else x.float()


class BySums:
    """What a communicator that has nothing better does by its all-reduce."""

    rank: int
    all_reduce: Callable[[Tensor], Tensor]

    @property
    def wire_bytes(self) -> int:
        """Return 0: nobody counts what goes through MPI's collectives or stays in memory."""
        return 0

    def all_reduce_later(self, x: Tensor) -> Callable[[], Tensor]:
        """Return what returns the sum of x [...], which is made at once; collective."""
        total = self.all_reduce(x)
        return lambda: total

    def share_rows(self, rows: Tensor, owners: Tensor) -> Tensor:
        """Return the owners' rows [T, D] in fp32; collective. All other ranks add zeros to them, so it is exact."""
        mine = owners == self.rank
        return self.all_reduce(torch.where(mine[:, None], rows, 0.0))  # times 0, infinity would be NaN


class Around(BySums):
    """What communicators around another one, `inner`, have in common: its place in the world, and its messages."""

    def __init__(self, inner: Communicator) -> None:
        self.rank = inner.rank
        self.size = inner.size
        self.broadcast = inner.broadcast
        self.collect = inner.collect
        self.share = inner.share
        self.tell, self.settle, self.hear = inner.tell, inner.settle, inner.hear
        self.answer, self.answers = inner.answer, inner.answers
        self.notify = inner.notify
        self.notes = inner.notes
        self.within = inner.within
        self.leave = inner.leave
        self._around = inner

    @property
    def wire_bytes(self) -> int:
        """Return what the communicator beneath has sent and received."""
        return self._around.wire_bytes


class Single(BySums):
    """The world of one rank."""

    rank = 0
    size = 1

    def __init__(self) -> None:
        self._notes: list[int] = []

    def all_reduce(self, x: Tensor) -> Tensor:
        """Return x [...] in fp64 where it is, else in fp32."""
        return summable(x)

    def share_rows(self, rows: Tensor, owners: Tensor) -> Tensor:
        """Return rows [T, D] in fp32."""
        return rows.float()

    def gather(self, x: Tensor) -> Tensor | None:
        """Return x in fp32."""
        return x.float()

    def broadcast(self, message: bytes | None) -> bytes:
        """Return the message."""
        if message is None:
            raise ValueError("rank 0 must pass the message that it broadcasts")
        return message

    def collect(self, message: bytes) -> list[bytes]:
        """Return the message alone."""
        return [message]

    def share(self, x: Tensor) -> None:
        """Leave x [...] as it is."""

    def tell(self, message: bytes, ranks: Sequence[int]) -> None:
        """Do nothing: there is nobody to tell."""

    def settle(self) -> None:
        """Do nothing: nothing was sent."""

    def hear(self, look: Callable[[], None] = _see_nothing) -> bytes:
        """Raise ValueError: rank 0 is told nothing."""
        raise ValueError("a world of one rank has none that could be told something")

    def answer(self, message: bytes) -> None:
        """Raise ValueError: rank 0 does not answer itself."""
        raise ValueError("a world of one rank has none that could answer")

    def answers(self) -> list[bytes | bytearray]:
        """Return nothing."""
        return []

    def notify(self, note: int) -> None:
        """Keep the note for `notes`."""
        self._notes.append(note)

    def notes(self) -> list[int]:
        """Return the notes since the last call."""
        notes, self._notes = self._notes, []
        return notes

    def within(self, ranks: Sequence[int]) -> Single:
        """Return another world of one."""
        return Single()

    def leave(self) -> None:
        """Do nothing."""
