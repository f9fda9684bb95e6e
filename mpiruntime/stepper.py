"""Make steps of models: plan, send, compute or have computed, sample or pool. Rank 0 only; the others follow."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ollampi.mpiruntime.flight import Flight, Planned, StepTimes, still_there
from ollampi.mpiruntime.gpu_sampler import sample_on_device
from ollampi.mpiruntime.guides import Guides
from ollampi.mpiruntime.held import HeldRows
from ollampi.mpiruntime.hosted_model import HostedModel
from ollampi.mpiruntime.pool import NOT_FINITE_TEXT
from ollampi.mpiruntime.request import TokenLogprob
from ollampi.mpiruntime.runner import Runner
from ollampi.mpiruntime.sampler import Pick, describe, sample
from ollampi.mpiruntime.sequence import Sequence
from ollampi.mpiruntime.speculation import Speculation
from ollampi.mpiruntime.step import Chunk, Step

_BROKEN_TEXT = "{} computed values that are not finite; check the checkpoint or use dtype=float32"
_TOO_FAR_TEXT = "the penalties and biases lead beyond the range of fp32; use smaller ones"


class Progress(NamedTuple):
    """What a step brought one sequence: tokens that its client may see, an embedding [D], or why it cannot go on."""

    sequence: Sequence
    tokens: list[int]
    logprobs: list[TokenLogprob]
    error: str | None = None
    embedding: NDArray[np.float32] | None = None


class Stepper:
    """Turns the plan of a model's scheduler into tokens.

    observe gets the times of every step; flush is called when all that is known was delivered.
    """

    def __init__(
        self,
        runner: Runner,
        guides: Guides,
        observe: Callable[[HostedModel, StepTimes], None],
        flush: Callable[[], None],
    ) -> None:
        self.runner = runner
        self.guides = guides
        self.speculation = Speculation(runner)
        self.observe = observe
        self.flush = flush
        self._held = HeldRows(guides)
        self._flights: dict[int, Flight] = {}  # of models without rank 0, by their numbers

    def turn(self, models: list[HostedModel], deliver: Callable[[Progress], None]) -> bool:
        """Make a step of each model, and deliver what it brought; return whether there was anything to do.

        Steps that other ranks make without rank 0 are sent first, and taken when they are done, in a later turn maybe:
        so groups that share no rank compute at the same time.
        """
        moved = False
        for model in models:
            moved |= not self.runner.takes_part(model.number) and self._exchange(model, deliver)
        for model in models:
            if self.runner.takes_part(model.number) and (flight := self._begin(model, deliver)) is not None:
                self._end(flight, deliver)
                moved = True
        return moved

    def _exchange(self, model: HostedModel, deliver: Callable[[Progress], None]) -> bool:
        """Take the step that other ranks have made, and send them the next; return whether any was taken or sent."""
        flight = self._flights.get(model.number)
        if flight is not None:
            if not self.runner.ready(model.number):
                return False
            del self._flights[model.number]
            model.under_way = False
            self._end(flight, deliver)
        sent = None if model.idle else self._begin(model, deliver)
        if sent is not None:
            self._flights[model.number] = sent
            model.under_way = True
        return flight is not None or sent is not None

    def _begin(self, model: HostedModel, deliver: Callable[[Progress], None]) -> Flight | None:
        """Send a step of a model, after what waited for a grammar; return None where there is nothing to compute."""
        began = time.perf_counter()
        for progress in self._sample(model, *self._held.release(model.number)):
            deliver(progress)
        self.flush()
        self.speculation.propose(model)
        planned = model.scheduler.plan()
        ready = time.perf_counter()
        planned = self.speculation.fill(model, planned)
        if not planned:
            return None
        self._foresee(planned)
        drafted = time.perf_counter()
        step = Step(model.number, [chunk for _, chunk in planned])
        self.runner.send(step)
        return Flight(model, planned, step, (began, ready, drafted, time.perf_counter()))

    def _end(self, flight: Flight, deliver: Callable[[Progress], None]) -> None:
        """Take part in a step, or take what others made of it, and deliver what it brought."""
        model, sent = flight.model, flight.times[-1]
        output = self.runner.step(flight.step)
        computed = time.perf_counter()
        model.pace.observe(flight.size[0], computed - sent, *flight.size[1:])
        planned = flight.planned
        if not self.runner.takes_part(model.number):
            planned, output = still_there(flight, output)
        for sequence, chunk in planned:
            model.scheduler.advance(sequence, len(chunk.tokens) - max(0, chunk.num_logits - 1))
        progresses: list[Progress] = []
        asked = [(s, chunk) for s, chunk in planned if chunk.num_logits]
        if output.logits is not None and asked:
            progresses = self._sample_output(model, asked, output.logits)
        if output.pooled is not None:
            progresses += _pool(planned, output.pooled.numpy())
        sampled = time.perf_counter()
        for progress in progresses:
            deliver(progress)
        self.flush()
        self.observe(model, StepTimes(*flight.times, computed, sampled, time.perf_counter()))

    def forget(self, model: HostedModel, sequence: Sequence) -> None:
        """Drop what is kept for a sequence that has ended."""
        if sequence.guide is not None:
            sequence.guide.close()
            self._held.drop(model.number, sequence)

    def _foresee(self, planned: Planned) -> None:
        """Have the masks behind drafts made while the step is computed."""
        for sequence, chunk in planned:
            if sequence.guide is not None and chunk.num_logits > 1:
                sequence.guide.foresee(sequence.drafts)
        self.guides.flush()

    def _sample_output(self, model: HostedModel, planned: Planned, logits: Tensor) -> list[Progress]:
        """Return what a step's rows of logits [B', V] bring; those on a GPU come to the host where they are needed."""
        told = any(s.guide is not None or s.request.sampling.logprobs for s, _ in planned)
        if logits.is_cpu or told:
            return self._sample(model, *self._held.sift(model.number, planned, logits.cpu().numpy()))
        picks = [pick for sequence, chunk in planned for pick in _picks(sequence, chunk.num_logits)]
        return self._accept_all(model, planned, sample_on_device(logits, picks), np.empty((0, 0), np.float32))

    def _sample(self, model: HostedModel, planned: Planned, logits: NDArray[np.float32]) -> list[Progress]:
        """Return what the rows of logits [B', V] bring their sequences: one for each, and one for each draft.

        The masks of their next tokens are made while these are delivered.
        """
        if not planned:
            return []
        picks: list[Pick] = []
        for sequence, chunk in planned:
            picks += _picks(sequence, chunk.num_logits)
        return self._accept_all(model, planned, sample(logits, picks), logits)

    def _accept_all(
        self,
        model: HostedModel,
        planned: Planned,
        tokens: list[int | None],
        logits: NDArray[np.float32],
    ) -> list[Progress]:
        """Return what the tokens that were chosen bring each sequence; logits: as for `_accept`."""
        progresses, row = [], 0
        for sequence, chunk in planned:
            progresses.append(self._accept(model, sequence, tokens[row : row + chunk.num_logits], logits, row))
            row += chunk.num_logits
        self.guides.flush()
        return progresses

    def _accept(
        self,
        model: HostedModel,
        sequence: Sequence,
        tokens: list[int | None],
        logits: NDArray[np.float32],
        row: int,
    ) -> Progress:
        """Append a sequence's next token, and those behind it as long as its drafts are what was chosen.

        tokens were chosen from logits [B', V] from `row` on. The token that stops an answer is not shown.
        """
        if tokens[0] is None:
            return Progress(sequence, [], [], self._explain(model, sequence))
        sampling, drafts = sequence.request.sampling, sequence.drafts
        progress = Progress(sequence, [], [])
        accepted = 0
        for token in tokens:
            assert token is not None
            sequence.append(token)
            if sequence.finish_reason != "stop":
                progress.tokens.append(token)
                if sampling.logprobs:
                    progress.logprobs.append(describe(logits[row + accepted], token, sampling.top_logprobs))
            if not drafts or not _goes_on(sequence, drafts, tokens, accepted):
                break
            accepted += 1
        if drafts:
            sequence.trust.learn(len(drafts), accepted)
            sequence.drafts = []
            model.counts.count_drafts(len(drafts), accepted)
            if sequence.num_cached:
                model.scheduler.advance(sequence, accepted)
        if not sequence.num_cached:
            model.scheduler.trim(sequence)
        if sequence.guide is not None and sequence.finish_reason is None:
            sequence.guide.advance(progress.tokens)
        return progress

    def _explain(self, model: HostedModel, sequence: Sequence) -> str:
        """Return why a sequence has no next token: its last one goes through the model again, part by part."""
        last = len(sequence.tokens) - 1
        chunk = Chunk([sequence.tokens[last]], last, list(sequence.blocks), 1)
        part = self.runner.lead_probe(Step(model.number, [chunk]))
        return _TOO_FAR_TEXT if part is None else _BROKEN_TEXT.format(part)


def _pool(planned: Planned, pooled: NDArray[np.float64]) -> Iterator[Progress]:
    """Add the sums pooled [P, D] to the pools that asked for them; yield the sequences whose embedding is complete."""
    asked = [(s, chunk, s.pool) for s, chunk in planned if s.pool is not None and chunk.num_pooled]
    for (sequence, chunk, pool), total in zip(asked, pooled, strict=True):
        pool.add(chunk, total)
        if not pool.finite:
            yield Progress(sequence, [], [], NOT_FINITE_TEXT)
        elif not sequence.pending:
            yield Progress(sequence, [], [], embedding=pool.embedding)


def _picks(sequence: Sequence, count: int) -> list[Pick]:
    """Return how the next token is chosen, and those behind the sequence's drafts, `count` in all."""
    sampling, tokens, position = sequence.request.sampling, sequence.tokens, sequence.position
    if count == 1 and sequence.guide is None:
        return [Pick(sampling, tokens, sequence.seed, position)]
    picks = []
    for index in range(count):
        before = tokens + sequence.drafts[:index] if index and sampling.penalises else tokens
        allowed = sequence.guide.masks[index] if sequence.guide is not None else None
        picks.append(Pick(sampling, before, sequence.seed, position + index, allowed))
    return picks


def _goes_on(sequence: Sequence, drafts: list[int], tokens: list[int | None], index: int) -> bool:
    """Return whether the token at `index` was drafted, so that the one behind it stands too."""
    return (
        index + 1 < len(tokens)  # a grammar may cut the drafts short
        and tokens[index] == drafts[index]
        and tokens[index + 1] is not None
        and sequence.finish_reason is None
        and sequence.num_cached > 0  # a shift of the context makes what comes behind it void
    )
