"""Make one step of a model: plan, send, compute, sample. Rank 0 only; the other ranks follow."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ollampi.mpiruntime.hosted import HostedModel
from ollampi.mpiruntime.request import TokenLogprob
from ollampi.mpiruntime.runner import Runner
from ollampi.mpiruntime.sampler import Pick, describe, sample
from ollampi.mpiruntime.sequence import Sequence
from ollampi.mpiruntime.step import Step

_NOT_FINITE_TEXT = "the model computed logits that are not finite; check the checkpoint or use dtype=float32"


@dataclass(frozen=True)
class StepTimes:
    """Where the time of one step went, in seconds: planning and sending, the forward pass, sampling and answering."""

    plan_s: float
    forward_s: float
    sample_s: float


@dataclass(frozen=True)
class Progress:
    """What a step brought one sequence: tokens that its client may see, or why it cannot go on."""

    sequence: Sequence
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    error: str | None = None


class Stepper:
    """Turns the plan of a model's scheduler into tokens; observe gets the times of every step."""

    def __init__(self, runner: Runner, observe: Callable[[StepTimes], None]) -> None:
        self.runner = runner
        self.observe = observe

    def step(self, model: HostedModel, deliver: Callable[[Progress], None]) -> None:
        """Make one step of a model and deliver what it brought; nothing happens where it has no work."""
        began = time.perf_counter()
        planned = model.scheduler.plan()
        if not planned:
            return
        step = Step(model.number, [chunk for _, chunk in planned])
        self.runner.send(step)
        sent = time.perf_counter()
        logits = self.runner.step(step)
        computed = time.perf_counter()
        for sequence, chunk in planned:
            model.scheduler.advance(sequence, chunk)
        if logits is not None:
            for progress in _sample(model, [s for s, chunk in planned if chunk.num_logits], logits.numpy()):
                deliver(progress)
        self.observe(StepTimes(sent - began, computed - sent, time.perf_counter() - computed))


def _sample(model: HostedModel, sequences: list[Sequence], logits: NDArray[np.float32]) -> list[Progress]:
    """Append the next token to each sequence, chosen from its row of logits [B, V]."""
    picks = [Pick(s.request.sampling, s.tokens, s.seed, s.position) for s in sequences]
    return [
        Progress(sequence, error=_NOT_FINITE_TEXT) if token is None else _append(model, sequence, row, token)
        for sequence, row, token in zip(sequences, logits, sample(logits, picks), strict=True)
    ]


def _append(model: HostedModel, sequence: Sequence, logits: NDArray[np.float32], token: int) -> Progress:
    """Append a token to a sequence; the one that stops it is not shown."""
    sampling = sequence.request.sampling
    sequence.append(token)
    model.scheduler.trim(sequence)
    if sequence.finish_reason == "stop":
        return Progress(sequence)
    return Progress(sequence, [token], [describe(logits, token, sampling.top_logprobs)] if sampling.logprobs else [])
