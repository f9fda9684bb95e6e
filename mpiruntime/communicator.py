"""Define what ranks say to each other, and the communicator of a world of one."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Communicator(Protocol):
    """What the ranks of one tensor-parallel group do together. Every call is collective: all ranks make it, in the
    same order. Tensors travel as buffers, messages as bytes; nothing is pickled."""

    rank: int
    size: int

    def all_reduce(self, x: Tensor) -> Tensor:
        """Return the sum of x [...] over all ranks, the same bits on every rank; x has one shape everywhere.

        In fp64 where x is, else in fp32.
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

    def notify(self, note: int) -> None:
        """Send a small number to rank 0, from any rank and at any time. Not collective."""

    def notes(self) -> list[int]:
        """Return on rank 0 what `notify` sent since the last call. Not collective."""


def summable(x: Tensor) -> Tensor:
    """Return x [...] in the dtype in which it is summed over ranks: fp64 stays, anything else becomes fp32."""
    return x if x.dtype == torch.float64 else x.float()


class Around:
    """What communicators around another one, `inner`, have in common: its place in the world, and its messages."""

    def __init__(self, inner: Communicator) -> None:
        self.rank = inner.rank
        self.size = inner.size
        self.broadcast = inner.broadcast
        self.collect = inner.collect
        self.share = inner.share
        self.notify = inner.notify
        self.notes = inner.notes


class Single:
    """The world of one rank."""

    rank = 0
    size = 1

    def __init__(self) -> None:
        self._notes: list[int] = []

    def all_reduce(self, x: Tensor) -> Tensor:
        """Return x [...] in fp64 where it is, else in fp32."""
        return summable(x)

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

    def notify(self, note: int) -> None:
        """Keep the note for `notes`."""
        self._notes.append(note)

    def notes(self) -> list[int]:
        """Return the notes since the last call."""
        notes, self._notes = self._notes, []
        return notes
