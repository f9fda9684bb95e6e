"""Measure what another communicator does: calls, seconds and bytes of each kind."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

from torch import Tensor

from ollampi.mpiruntime.communicator import Around, Communicator
from ollampi.mpiruntime.metrics import StepCounts
from ollampi.mpiruntime.trace import Trace

_ITEM_BYTES = 4  # what is gathered is in fp32


class Timed(Around):
    """The communicator `inner` with its tensors' exchange counted, and traced where there is a trace.

    Seconds include waiting for slower ranks; bytes are those that this rank puts in, of shared rows all; beside them
    those that it sends and receives, where `inner` counts these. Messages are not counted.
    """

    def __init__(self, inner: Communicator, counts: StepCounts, trace: Trace | None = None) -> None:
        super().__init__(inner)
        self._inner = inner
        self._all_reduces = counts.all_reduce
        self._gathers = counts.gather
        self._trace = trace

    def all_reduce(self, x: Tensor) -> Tensor:
        """Return the sum of x over all ranks, of the shape of x [...], in fp64 where x is, else in fp32; collective."""
        began, wire = perf_counter(), self._inner.wire_bytes
        total = self._inner.all_reduce(x)
        self._all_reduced(began, wire, total.nbytes)
        return total

    def all_reduce_later(self, x: Tensor) -> Callable[[], Tensor]:
        """Return what waits for the sum of x [...]; collective. Counted is the time to start it and to wait for it."""
        began, wire = perf_counter(), self._inner.wire_bytes
        wait = self._inner.all_reduce_later(x)
        started, wire_at_once = perf_counter(), self._inner.wire_bytes - wire

        def waited() -> Tensor:
            """Return the sum."""
            resumed, wire = perf_counter(), self._inner.wire_bytes
            total = wait()
            self._all_reduced(resumed, wire - wire_at_once, total.nbytes, started - began)
            return total

        return waited

    def share_rows(self, rows: Tensor, owners: Tensor) -> Tensor:
        """Return rows [T, D] as their owners have them, in fp32; collective. Counted as an all-reduce."""
        began, wire = perf_counter(), self._inner.wire_bytes
        shared = self._inner.share_rows(rows, owners)
        self._all_reduced(began, wire, rows.nbytes)
        return shared

    def _all_reduced(self, began: float, wire: int, size_bytes: int, before_s: float = 0.0) -> None:
        """Count a sum that took `before_s`, and then from `began` to now; wire: inner's wire_bytes before it."""
        ended = perf_counter()
        self._all_reduces.add(before_s + ended - began, size_bytes, self._inner.wire_bytes - wire)
        if self._trace is not None:
            self._trace.exchange("all_reduce", began, ended, size_bytes)

    def gather(self, x: Tensor) -> Tensor | None:
        """Return the x [B, d] of all ranks side by side on rank 0 and None elsewhere; collective."""
        began, wire = perf_counter(), self._inner.wire_bytes
        joined = self._inner.gather(x)
        ended = perf_counter()
        self._gathers.add(ended - began, x.numel() * _ITEM_BYTES, self._inner.wire_bytes - wire)
        if self._trace is not None:
            self._trace.exchange("gather", began, ended, x.numel() * _ITEM_BYTES)
        return joined
