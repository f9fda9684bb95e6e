"""Show what happens inside a server: the samples of a scrape and the trace. Rank 0 only; the other ranks follow."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

from ollampi.mpiruntime.flight import StepTimes
from ollampi.mpiruntime.hosted import Models
from ollampi.mpiruntime.hosted_model import HostedModel
from ollampi.mpiruntime.metrics import PHASES
from ollampi.mpiruntime.placed import Placed, replicas_of
from ollampi.mpiruntime.request import Sample
from ollampi.mpiruntime.runner import Runner
from ollampi.mpiruntime.step import Recall

_SHORTEST_INTERVAL_S = 0.1  # between two questions to all ranks, however often somebody scrapes


class InsideView:
    """Counts what concerns no single model, and collects the counts of all; `refused` by the code of the error.

    observe gets the times of every step too.
    """

    def __init__(self, runner: Runner, models: Models, observe: Callable[[StepTimes], None]) -> None:
        self.refused = Counter(busy=0, context=0, model=0, request=0, shutdown=0, timeout=0, internal=0)
        self._runner = runner
        self._models = models
        self._observe = observe
        self._of_ranks: list[Sample] = []
        self._asked_at = -_SHORTEST_INTERVAL_S

    def step(self, model: HostedModel, times: StepTimes) -> None:
        """Count and trace a step."""
        parts = times.parts()
        for name, began, ended in parts:
            if name in PHASES:
                model.counts.phases[name] += ended - began
        if self._runner.trace is not None:
            running, waiting = len(model.scheduler.running), len(model.scheduler.waiting)
            self._runner.trace.step(model.ref.name, parts, running, waiting)
        self._observe(times)

    def samples(self, waiting_for_model: int) -> list[Sample]:
        """Return the samples of rank 0 and of all ranks; collective unless just asked for, or a load holds some up."""
        health = self._runner.health
        lately = time.monotonic() - self._asked_at < _SHORTEST_INTERVAL_S
        well = health is None or health.all_online  # else all would wait for the silent rank
        if not lately and well and not self._models.held_up:
            self._of_ranks = self._runner.lead_report()
            self._asked_at = time.monotonic()
        found: list[Sample] = [
            ("ollampi_models_loaded", {}, len(self._models.placed())),
            ("ollampi_requests_waiting_for_model", {}, waiting_for_model),
        ]
        found += [] if health is None else health.samples()
        found += [("ollampi_requests_refused_total", {"code": code}, n) for code, n in self.refused.items()]
        found += [sample for placed in self._models.placed() for sample in _gauges(placed)]
        found += [sample for name, counts in self._models.counts.items() for sample in counts.samples(name)]
        return found + self._of_ranks

    def save_trace(self, announce: Callable[[str], None]) -> None:
        """Collect the trace from all ranks and write it, if there is one; announce gets a line about it."""
        trace = self._runner.trace
        if trace is not None:
            announce(trace.write(self._runner.lead_recall(Recall(trace.zero))))


def _gauges(placed: Placed) -> list[Sample]:
    """Return how full the queues and the caches of a model's replicas are now, all together."""
    labels = {"model": placed.ref.name}
    schedulers = [replica.scheduler for replica in replicas_of([placed])]
    return [
        ("ollampi_requests_running", labels, sum(len(s.running) for s in schedulers)),
        ("ollampi_requests_waiting", labels, sum(len(s.waiting) for s in schedulers)),
        ("ollampi_cache_blocks", labels, sum(s.blocks.num_blocks for s in schedulers)),
        ("ollampi_cache_blocks_used", labels, sum(s.blocks.num_blocks - s.blocks.num_free for s in schedulers)),
    ]
