"""Measure what another communicator does: calls, seconds and bytes of each kind."""

from __future__ import annotations

from time import perf_counter

from torch import Tensor

from ollampi.mpiruntime.communicator import Around, Communicator
from ollampi.mpiruntime.metrics import StepCounts
from ollampi.mpiruntime.trace import Trace

_ITEM_BYTES = 4  # what is gathered is in fp32


class Timed(Around):
    """The communicator `inner` with its tensors' exchange counted, and traced where there is a trace.

    Seconds include waiting for slower ranks; bytes are those that this rank puts in. Messages are not counted.
    """

    def __init__(self, inner: Communicator, counts: StepCounts, trace: Trace | None = None) -> None:
        super().__init__(inner)
        self._inner = inner
        self._all_reduces = counts.all_reduce
        self._gathers = counts.gather
        self._trace = trace

    def all_reduce(self, x: Tensor) -> Tensor:
        """Return the sum of x over all ranks, of the shape of x [...], in fp64 where x is, else in fp32; collective."""
        began = perf_counter()
        total = self._inner.all_reduce(x)
        ended = perf_counter()
        self._all_reduces.add(ended - began, total.nbytes)
        if self._trace is not None:
            self._trace.exchange("all_reduce", began, ended, total.nbytes)
        return total

    def gather(self, x: Tensor) -> Tensor | None:
        """Return the x [B, d] of all ranks side by side on rank 0 and None elsewhere; collective."""
        began = perf_counter()
        joined = self._inner.gather(x)
        ended = perf_counter()
        self._gathers.add(ended - began, x.numel() * _ITEM_BYTES)
        if self._trace is not None:
            self._trace.exchange("gather", began, ended, x.numel() * _ITEM_BYTES)
        return joined
