"""Hold a step that was sent, until it is computed. Rank 0 only."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ollampi.mpiruntime.decoder import Output
from ollampi.mpiruntime.hosted_model import HostedModel
from ollampi.mpiruntime.sequence import Sequence
from ollampi.mpiruntime.step import Chunk, Step

Planned = list[tuple[Sequence, Chunk]]


@dataclass(frozen=True)
class StepTimes:
    """When one step began and when its parts ended, in seconds of time.perf_counter()."""

    began: float
    planned: float
    drafted: float
    sent: float
    computed: float
    sampled: float
    delivered: float

    @property
    def forward_s(self) -> float:
        """Return the seconds of the forward pass."""
        return self.computed - self.sent

    def parts(self) -> list[tuple[str, float, float]]:
        """Return name, begin and end of each part."""
        return [
            ("plan", self.began, self.planned),
            ("draft", self.planned, self.drafted),
            ("send", self.drafted, self.sent),
            ("forward", self.sent, self.computed),
            ("sample", self.computed, self.sampled),
            ("deliver", self.sampled, self.delivered),
        ]


@dataclass(frozen=True)
class Flight:
    """A step that was sent; times: when it began and when its parts ended, the last one being the sending."""

    model: HostedModel
    planned: Planned
    step: Step
    times: tuple[float, float, float, float]

    @property
    def size(self) -> tuple[int, int, int]:
        """Return its tokens, its answers that go on, and their drafts."""
        return _size(self.step.chunks)


def still_there(flight: Flight, output: Output) -> tuple[Planned, Output]:
    """Return what was planned without sequences that ended while others computed, and the output without their rows."""
    planned, running = flight.planned, set(flight.model.scheduler.running)
    gone = [sequence not in running for sequence, _ in planned]
    if not any(gone):
        return planned, output
    logit_rows = [not left for left, (_, chunk) in zip(gone, planned, strict=True) for _ in range(chunk.num_logits)]
    pool_rows = [not left for left, (s, c) in zip(gone, planned, strict=True) if s.pool is not None and c.num_pooled]
    logits = None if output.logits is None else output.logits[torch.tensor(logit_rows, dtype=torch.bool)]
    pooled = None if output.pooled is None else output.pooled[torch.tensor(pool_rows, dtype=torch.bool)]
    return [each for each, left in zip(planned, gone, strict=True) if not left], Output(logits, pooled)


def _size(chunks: list[Chunk]) -> tuple[int, int, int]:
    """Return the tokens of a step, its answers that go on, and their drafts."""
    num_tokens = sum(len(chunk.tokens) for chunk in chunks)
    num_drafts = sum(chunk.num_logits - 1 for chunk in chunks if chunk.num_logits > 1)
    return num_tokens, sum(len(chunk.tokens) == max(1, chunk.num_logits) for chunk in chunks), num_drafts
