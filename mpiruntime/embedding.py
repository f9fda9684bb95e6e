"""Bring the inputs of one embedding request to the scheduler, some of them at a time."""

from __future__ import annotations

import time
from array import array
from collections import deque

import numpy as np

from ollampi.mpiruntime.errors import ContextError, RequestError
from ollampi.mpiruntime.hosted_model import HostedModel
from ollampi.mpiruntime.pool import Pool
from ollampi.mpiruntime.request import EmbedRequest, GenerateRequest, Usage
from ollampi.mpiruntime.sequence import Sequence

_MOST_QUEUED = 64  # inputs of one request
_STEPS_QUEUED = 2  # how many steps they may fill


class Inputs:
    """The inputs of one embedding request; `queued` are those that the scheduler has, with their places in the request.

    A request takes one place in the queue however many inputs it has. Only as many as keep the steps full are queued at
    one time, so that a request that comes later does not wait for all of them.
    """

    def __init__(self, request: EmbedRequest, model: HostedModel, arrived: float) -> None:
        """Raise RequestError, ContextError for an input that cannot be served; `arrived` by time.monotonic()."""
        self._request = request
        self._scheduler = model.scheduler
        self._context = min(request.context or model.context, model.context, model.scheduler.capacity)
        self._rest = deque(enumerate(request.prompts))
        self.num_tokens = sum(map(len, request.prompts))
        self._num_queued = 0  # tokens
        self._began = time.monotonic()
        self._load_ns = int((self._began - arrived) * 1e9)
        self._leader: Sequence | None = None
        self.queued: dict[Sequence, int] = {}
        if request.pooling == "first" and not model.config.encoder:
            raise RequestError("the embedding of a first token is for encoders only; use mean or last pooling")
        _check_tokens(request.prompts, model.config.vocab_size)
        _check_lengths(request.prompts, self._context)

    def start(self) -> list[Sequence]:
        """Queue the first inputs and return them; raise BusyError where the queue is full."""
        first = self._next()
        self._scheduler.add(first)
        return [first, *self._feed()]

    def finish(self, sequence: Sequence) -> tuple[int, list[Sequence]]:
        """Take an input out of the queue; return its place in the request, and the inputs that were queued instead."""
        self._scheduler.remove(sequence)
        self._num_queued -= len(sequence.tokens)
        return self.queued.pop(sequence), self._feed()

    def usage(self) -> Usage:
        """Return counts and durations so far."""
        return Usage(
            prompt_tokens=self.num_tokens,
            load_ns=self._load_ns,
            prompt_ns=int((time.monotonic() - self._began) * 1e9),
        )

    def _feed(self) -> list[Sequence]:
        """Queue more inputs while the steps need them, and return them."""
        fed = []
        while self._rest and self._has_room:
            fed.append(self._next())
            self._scheduler.add_more(fed[-1])
        return fed

    @property
    def _has_room(self) -> bool:
        """Return whether more inputs keep the steps full; the last step of a long one has room for the next one."""
        enough = _STEPS_QUEUED * self._scheduler.max_step_tokens
        return len(self.queued) < 2 or (len(self.queued) < _MOST_QUEUED and self._num_queued < enough)

    def _next(self) -> Sequence:
        """Return the sequence of the next input."""
        place, prompt = self._rest.popleft()
        request = GenerateRequest(self._request.model, prompt.tolist())
        sequence = Sequence(request, self._context, seed=0, pool=Pool(self._request.pooling), leader=self._leader)
        self._leader = self._leader or sequence
        self.queued[sequence] = place
        self._num_queued += len(prompt)
        return sequence


def _check_tokens(prompts: list[array[int]], vocab_size: int) -> None:
    """Raise RequestError for an empty input or a token that the model does not have."""
    if not prompts or not all(prompts):
        raise RequestError("an input has no tokens; send at least one character")
    tokens = np.concatenate([np.asarray(prompt) for prompt in prompts])
    if not 0 <= tokens.min() <= tokens.max() < vocab_size:
        raise RequestError(f"an input has token {tokens.max()}, the model's vocabulary {vocab_size}")


def _check_lengths(prompts: list[array[int]], context: int) -> None:
    """Raise ContextError for an input that is longer than the context."""
    longest = max(map(len, prompts))
    if longest > context:
        raise ContextError(
            f"the input of {longest} tokens is longer than the context length currently available ({context} tokens);"
            " shorten it or start the server with a larger context_length"
        )
