"""Note in which collective a rank waits, for the watchdog."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import Tensor

from ollampi.mpiruntime.communicator import Around, Communicator
from ollampi.mpiruntime.watchdog import Place

T = TypeVar("T")


class Watched(Around):
    """The communicator `inner` that says in `place` where it waits. Ranks must come soon to what belongs to a step.

    The communicators of one group have one place on a rank; idle: where it says that it waits for work.
    """

    def __init__(self, inner: Communicator, place: Place, idle: Place | None = None) -> None:
        super().__init__(inner)
        self._inner = inner
        self._place = place
        self.collect = lambda message: self._wait("collect", False, lambda: inner.collect(message))
        self.share = lambda x: self._wait("share", False, lambda: inner.share(x))
        self.broadcast = self._broadcast
        self._idle = idle or Place()
        self.hear = self._hear

    def all_reduce(self, x: Tensor) -> Tensor:
        """Return the sum of x [...] over all ranks, in fp64 where x is, else in fp32; collective."""
        self._place.come("all_reduce", True)  # without _wait: this is called most
        total = self._inner.all_reduce(x)
        self._place.go()
        return total

    def all_reduce_later(self, x: Tensor) -> Callable[[], Tensor]:
        """Return what waits for the sum of x [...]; collective. What it starts may wait too, for ranks of one host."""
        wait = self._wait("all_reduce", True, lambda: self._inner.all_reduce_later(x))
        return lambda: self._wait("all_reduce", True, wait)

    def share_rows(self, rows: Tensor, owners: Tensor) -> Tensor:
        """Return rows [T, D] as their owners [T] have them, in fp32; collective."""
        return self._wait("share_rows", True, lambda: self._inner.share_rows(rows, owners))

    def gather(self, x: Tensor) -> Tensor | None:
        """Return the x [B, d] of all ranks side by side on rank 0 and None elsewhere; collective."""
        return self._wait("gather", True, lambda: self._inner.gather(x))

    def _broadcast(self, message: bytes | None) -> bytes:
        """Return rank 0's message; the others may wait for it as long as there is nothing to do and rank 0 answers."""
        return self._wait("broadcast", False, lambda: self._inner.broadcast(message))

    def _hear(self, look: Callable[[], None] = lambda: None) -> bytes:
        """Return what rank 0 tells this rank next, which may wait likewise; no collective, so it has a place apart."""
        self._idle.come("messages", False)
        message = self._inner.hear(look)
        self._idle.go()
        return message

    def _wait(self, what: str, prompt: bool, work: Callable[[], T]) -> T:
        """Return what `work` returns, which waits for other ranks in the collective `what`."""
        self._place.come(what, prompt)
        found = work()
        self._place.go()
        return found
