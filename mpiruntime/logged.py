"""Log what a rank exchanges with others: each call with its bytes and the time that it took."""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import perf_counter
from typing import TypeVar

from torch import Tensor

from ollampi.mpiruntime.communicator import Around, Communicator
from ollampi.mpiruntime.log_files import NETWORK

T = TypeVar("T")

_log = logging.getLogger(NETWORK)


class Logged(Around):
    """The communicator `inner` with a line in the log for each call: its kind, this rank's bytes, microseconds.

    Waiting for others is in the time. For looking at a network only: each line takes some 20 microseconds.
    """

    def __init__(self, inner: Communicator) -> None:
        super().__init__(inner)
        self._inner = inner
        self.broadcast = lambda message: self._told("broadcast", len(message or b""), lambda: inner.broadcast(message))
        self.tell = lambda message, ranks: self._told("tell", len(message), lambda: inner.tell(message, ranks))
        self.hear = self._heard
        self.answer = lambda message: self._told("answer", len(message), lambda: inner.answer(message))
        self.collect = lambda message: self._told("collect", len(message), lambda: inner.collect(message))
        self.share = lambda x: self._told("share", x.nbytes, lambda: inner.share(x))

    def all_reduce(self, x: Tensor) -> Tensor:
        """Return the sum of x [...] over all ranks, in fp64 where x is, else in fp32; collective."""
        return self._told("all_reduce", x.nbytes, lambda: self._inner.all_reduce(x))

    def all_reduce_later(self, x: Tensor) -> Callable[[], Tensor]:
        """Return what waits for the sum of x [...]; collective."""
        wait = self._told("all_reduce begins", x.nbytes, lambda: self._inner.all_reduce_later(x))
        return lambda: self._told("all_reduce ends", x.nbytes, wait)

    def share_rows(self, rows: Tensor, owners: Tensor) -> Tensor:
        """Return rows [T, D] as their owners [T] have them, in fp32; collective."""
        return self._told("share_rows", rows.nbytes, lambda: self._inner.share_rows(rows, owners))

    def gather(self, x: Tensor) -> Tensor | None:
        """Return the x [B, d] of all ranks side by side on rank 0 and None elsewhere; collective."""
        return self._told("gather", x.nbytes, lambda: self._inner.gather(x))

    def _heard(self, look: Callable[[], None] = lambda: None) -> bytes:
        """Return the next message that rank 0 tells this rank."""
        began = perf_counter()
        message = self._inner.hear(look)
        self._line("hear", len(message), 0, began)
        return message

    def _told(self, what: str, size_bytes: int, work: Callable[[], T]) -> T:
        """Return what `work` returns."""
        began, wire = perf_counter(), self._inner.wire_bytes
        found = work()
        self._line(what, size_bytes, self._inner.wire_bytes - wire, began)
        return found

    def _line(self, what: str, size_bytes: int, wire: int, began: float) -> None:
        """Write one line of the log, at the end of a call."""
        passed_us = (perf_counter() - began) * 1e6
        _log.debug("%s of %d bytes, %d on the wire, %.0f us", what, size_bytes, wire, passed_us)
