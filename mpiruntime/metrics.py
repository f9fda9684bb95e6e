"""Count what ranks and requests do, as plain numbers that cost microseconds; `samples` are what a scrape reads.

Counts are kept by model name, so that they go on where a model is unloaded and loaded again.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ollampi.mpiruntime.request import Sample

PHASES = ("plan", "draft", "send", "sample", "deliver")  # of a step on rank 0, besides the forward pass
STEP_BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
FIRST_TOKEN_BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
INTER_TOKEN_BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5)


class Histogram:
    """How many values lie in each range up to a bound, the bound included, or above them all; and their sum."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count a value, so many times."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times

    def wire(self) -> dict[str, Any]:
        """Return bounds, counts (one more than bounds) and sum as plain values."""
        return {"bounds": list(self.bounds), "counts": list(self.counts), "sum": self.sum}


@dataclass
class Exchange:
    """Calls of one kind between the ranks: how many, how long they took, what this rank put in, sent and received."""

    calls: int = 0
    seconds: float = 0.0
    size_bytes: int = 0
    wire_bytes: int = 0

    def add(self, seconds: float, size_bytes: int, wire_bytes: int = 0) -> None:
        """Count a call."""
        self.calls += 1
        self.seconds += seconds
        self.size_bytes += size_bytes
        self.wire_bytes += wire_bytes


@dataclass
class StepCounts:
    """The steps of one model on one rank."""

    tokens: int = 0
    seconds: Histogram = field(default_factory=lambda: Histogram(STEP_BOUNDS_S))
    all_reduce: Exchange = field(default_factory=Exchange)
    gather: Exchange = field(default_factory=Exchange)
    traced_s: float = 0.0  # of exchange, up to the step that was traced last
    ended: float | None = None  # the last step, by time.perf_counter(), which is time.monotonic() on Linux

    def add(self, tokens: int, seconds: float) -> None:
        """Count a step."""
        self.tokens += tokens
        self.seconds.observe(seconds)

    @property
    def exchange_s(self) -> float:
        """Return the seconds that exchange took so far."""
        return self.all_reduce.seconds + self.gather.seconds

    def samples(self, rank: int, model: str) -> list[Sample]:
        """Return the samples of this rank."""
        where = {"model": model, "rank": str(rank)}
        found: list[Sample] = [
            ("ollampi_step_seconds", where, self.seconds.wire()),
            ("ollampi_step_tokens_total", where, self.tokens),
            _phase(where, "compute", max(0.0, self.seconds.sum - self.exchange_s)),
            _phase(where, "exchange", self.exchange_s),
        ]
        for kind, exchange in (("all_reduce", self.all_reduce), ("gather", self.gather)):
            labels = {**where, "kind": kind}
            found += [
                ("ollampi_exchange_calls_total", labels, exchange.calls),
                ("ollampi_exchange_seconds_total", labels, exchange.seconds),
                ("ollampi_exchange_bytes_total", labels, exchange.size_bytes),
                ("ollampi_exchange_wire_bytes_total", labels, exchange.wire_bytes),
            ]
        return found


def no_requests() -> Counter[str]:
    """Return the outcomes of no requests: every name is there, so that other threads may read while one is counted."""
    return Counter(stop=0, length=0, cancel=0, error=0)


@dataclass
class ModelCounts:
    """What rank 0 knows of one model's requests, cache and steps; `phases` are the seconds of each."""

    outcomes: Counter[str] = field(default_factory=no_requests)
    replicas: dict[tuple[tuple[int, ...], int], Counter[str]] = field(default_factory=dict)
    phases: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    first_token: Histogram = field(default_factory=lambda: Histogram(FIRST_TOKEN_BOUNDS_S))
    inter_token: Histogram = field(default_factory=lambda: Histogram(INTER_TOKEN_BOUNDS_S))
    prompt_tokens: int = 0
    generated_tokens: int = 0
    prefix_lookups: int = 0
    prefix_hits: int = 0
    prefix_tokens: int = 0
    preemptions: int = 0
    drafts_proposed: int = 0
    drafts_accepted: int = 0

    def of_replica(self, ranks: Sequence[int], copy: int = 0) -> Counter[str]:
        """Return the outcomes of the requests that a replica on some ranks had; they outlive it.

        copy: how many replicas before it lie on the same ranks.
        """
        return self.replicas.setdefault((tuple(ranks), copy), no_requests())

    def count_prefix(self, num_tokens: int) -> None:
        """Count a look into the cache for a prompt's beginning, which found so many tokens."""
        self.prefix_lookups += 1
        self.prefix_hits += num_tokens > 0
        self.prefix_tokens += num_tokens

    def count_drafts(self, proposed: int, accepted: int) -> None:
        """Count tokens that speculative decoding proposed, and those of them that were right."""
        self.drafts_proposed += proposed
        self.drafts_accepted += accepted

    def samples(self, model: str) -> list[Sample]:
        """Return the samples of rank 0."""
        labels = {"model": model}
        root = {**labels, "rank": "0"}
        found: list[Sample] = [_phase(root, phase, seconds) for phase, seconds in self.phases.items()]
        found += [
            ("ollampi_requests_total", {**labels, "outcome": outcome}, count)
            for outcome, count in self.outcomes.items()
        ]
        found += [
            ("ollampi_replica_requests_total", {**labels, "ranks": _place(*key), "outcome": outcome}, count)
            for key, outcomes in self.replicas.items()
            for outcome, count in outcomes.items()
        ]
        return [
            *found,
            ("ollampi_time_to_first_token_seconds", labels, self.first_token.wire()),
            ("ollampi_inter_token_seconds", labels, self.inter_token.wire()),
            ("ollampi_prompt_tokens_total", labels, self.prompt_tokens),
            ("ollampi_generated_tokens_total", labels, self.generated_tokens),
            ("ollampi_prefix_cache_lookups_total", labels, self.prefix_lookups),
            ("ollampi_prefix_cache_hits_total", labels, self.prefix_hits),
            ("ollampi_prefix_cache_tokens_total", labels, self.prefix_tokens),
            ("ollampi_preemptions_total", labels, self.preemptions),
            ("ollampi_draft_tokens_proposed_total", labels, self.drafts_proposed),
            ("ollampi_draft_tokens_accepted_total", labels, self.drafts_accepted),
        ]


class RequestMeter:
    """What one request adds to the counts of its model and its replica; `arrived` by time.monotonic()."""

    def __init__(self, counts: ModelCounts, prompt_tokens: int, arrived: float, replica: Counter[str]) -> None:
        self._prompt_tokens = prompt_tokens  # not counted yet
        self._counts = counts
        self._replica = replica
        self._generated = 0
        self._last = arrived

    def advance(self, generated: int) -> None:
        """Count the tokens since the last call, `generated` so far; those of one step share its time equally."""
        new = generated - self._generated
        if not new:
            return
        self._count_prompt()
        now = time.monotonic()
        if self._generated:
            self._counts.inter_token.observe((now - self._last) / new, new)
        else:
            self._counts.first_token.observe(now - self._last)
            self._counts.inter_token.observe(0.0, new - 1)
        self._counts.generated_tokens += new
        self._generated, self._last = generated, now

    def end(self, outcome: str | None) -> None:
        """Count the request: stop, length, cancel or error; None for one that was refused after all."""
        if outcome is not None:
            self._count_prompt()
            self._counts.outcomes[outcome] += 1
            self._replica[outcome] += 1

    def _count_prompt(self) -> None:
        """Count the prompt, once."""
        self._counts.prompt_tokens += self._prompt_tokens
        self._prompt_tokens = 0


def _place(ranks: tuple[int, ...], copy: int) -> str:
    """Return where a replica lies, such as 0,1; a second one there is 0,1 (2)."""
    return ",".join(map(str, ranks)) + (f" ({copy + 1})" if copy else "")


def _phase(labels: dict[str, str], phase: str, seconds: float) -> Sample:
    """Return how long one part of the steps took so far."""
    return "ollampi_step_phase_seconds_total", {**labels, "phase": phase}, seconds
