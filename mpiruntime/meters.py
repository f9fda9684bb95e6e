"""Measure the steps of one rank, and bring what all ranks measured to rank 0."""

from __future__ import annotations

import json
import time

from ollampi.mpiruntime.communicator import Communicator
from ollampi.mpiruntime.metrics import StepCounts
from ollampi.mpiruntime.request import Sample
from ollampi.mpiruntime.timed import Timed
from ollampi.mpiruntime.trace import Trace, clock_ahead, gather_texts
from ollampi.mpiruntime.world import RankFacts


class ModelMeter:
    """The steps of one model on this rank; its decoder talks through `comm`, and sums activations through `sums`."""

    def __init__(self, name: str, comm: Communicator, trace: Trace | None, sums: Communicator | None = None) -> None:
        self.counts = StepCounts()
        self.comm = Timed(comm, self.counts, trace)
        self.sums = self.comm if sums is None else Timed(sums, self.counts, trace)
        self._name = name
        self._trace = trace
        self._exchanged_s = 0.0
        self.ended: float | None = None  # of the last step, by time.perf_counter(), which is time.monotonic() on Linux

    def step(self, tokens: int, began: float) -> None:
        """Count a step that began at a time.perf_counter() and ends now."""
        self.ended = ended = time.perf_counter()
        self.counts.add(tokens, ended - began)
        if self._trace is not None:
            before, self._exchanged_s = self._exchanged_s, self.counts.exchange_s
            self._trace.forward(self._name, began, ended, tokens, self._exchanged_s - before)


class Meters:
    """The meters of one rank by the names of the models; they outlive the models."""

    def __init__(
        self, comm: Communicator, facts: list[RankFacts], trace: Trace | None, sums: Communicator | None = None
    ) -> None:
        self._comm = comm
        self._sums = sums
        self._facts = facts
        self._trace = trace
        self._meters: dict[str, ModelMeter] = {}

    def of(self, name: str) -> ModelMeter:
        """Return the meter of a model."""
        return self._meters.setdefault(name, ModelMeter(name, self._comm, self._trace, self._sums))

    def total(self) -> tuple[int, float, float | None]:
        """Return how many steps this rank made, their seconds, and when the last one ended; called by any thread."""
        meters = list(self._meters.values())
        count = sum(sum(meter.counts.seconds.counts) for meter in meters)
        seconds = sum(meter.counts.seconds.sum for meter in meters)
        return count, seconds, max((meter.ended for meter in meters if meter.ended is not None), default=None)

    def samples(self) -> list[Sample]:
        """Return the samples of all ranks; collective."""
        mine = [
            sample for name, meter in self._meters.items() for sample in meter.counts.samples(self._comm.rank, name)
        ]
        return [sample for told in self._comm.collect(json.dumps(mine).encode()) for sample in json.loads(told)]

    def events(self, zero: float) -> list[bytes]:
        """Return each rank's traced events on rank 0, as JSON without brackets; collective.

        zero: where time begins on rank 0's clock.
        """
        if self._trace is None:
            return []
        rank = self._comm.rank
        began = zero + clock_ahead(self._comm, self._facts)
        events = self._trace.events(rank, self._facts[rank].host, began)
        return gather_texts(self._comm, ",\n".join(events).encode())
