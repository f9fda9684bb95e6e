"""Measure the steps of one rank, and bring what all ranks measured to rank 0."""

from __future__ import annotations

import json
import time

from ollampi.mpiruntime.communicator import Communicator
from ollampi.mpiruntime.groups import Group
from ollampi.mpiruntime.metrics import StepCounts
from ollampi.mpiruntime.request import Sample
from ollampi.mpiruntime.timed import Timed
from ollampi.mpiruntime.trace import Trace, clock_ahead, gather_texts
from ollampi.mpiruntime.world import RankFacts


class ModelMeter:
    """The steps of one model on this rank; its decoder talks through `comm`, and sums activations through `sums`.

    counts: where they are counted, for all replicas of the model.
    """

    def __init__(
        self, name: str, counts: StepCounts, comm: Communicator, trace: Trace | None, sums: Communicator
    ) -> None:
        self.counts = counts
        self.comm = Timed(comm, counts, trace)
        self.sums = self.comm if sums is comm else Timed(sums, counts, trace)
        self._name = name
        self._trace = trace

    def step(self, tokens: int, began: float) -> None:
        """Count a step that began at a time.perf_counter() and ends now."""
        self.counts.ended = ended = time.perf_counter()
        self.counts.add(tokens, ended - began)
        if self._trace is not None:
            before, self.counts.traced_s = self.counts.traced_s, self.counts.exchange_s
            self._trace.forward(self._name, began, ended, tokens, self.counts.traced_s - before)


class Meters:
    """What is measured on one rank by the names of the models; it outlives the models. comm: of all ranks."""

    def __init__(self, comm: Communicator, facts: list[RankFacts], trace: Trace | None) -> None:
        self._comm = comm
        self._facts = facts
        self._trace = trace
        self._counts: dict[str, StepCounts] = {}

    def of(self, name: str, group: Group) -> ModelMeter:
        """Return a meter of a model that a group computes."""
        counts = self._counts.setdefault(name, StepCounts())
        return ModelMeter(name, counts, group.comm, self._trace, group.sums)

    def total(self) -> tuple[int, float, float | None]:
        """Return how many steps this rank made, their seconds, and when the last one ended; called by any thread."""
        counts = list(self._counts.values())
        steps = sum(sum(each.seconds.counts) for each in counts)
        seconds = sum(each.seconds.sum for each in counts)
        return steps, seconds, max((each.ended for each in counts if each.ended is not None), default=None)

    def samples(self) -> list[Sample]:
        """Return the samples of all ranks; collective."""
        mine = [sample for name, counts in self._counts.items() for sample in counts.samples(self._comm.rank, name)]
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
