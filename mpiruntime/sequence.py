"""Hold the state of one generation, or of one prompt to embed, inside the engine."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from ollampi.mpiruntime.drafts import Lookup, Trust
from ollampi.mpiruntime.guides import Guide
from ollampi.mpiruntime.pool import Pool
from ollampi.mpiruntime.request import GenerateRequest, Usage


@dataclass(eq=False)
class Sequence:
    """One generation: its tokens so far and the cache blocks that hold the first `num_cached` of them.

    tokens: prompt and answer; num_cached: how many tokens have keys and values in the cache; digests: of the full
    blocks of tokens, as far as they were needed; drafts: how the text may go on, to be checked by the next step; trust:
    in where they come from; num_drafted: how many tokens have keys and values in the draft model's cache;
    position: index of the next token counted from the first one of the request, which a context shift does not change;
    seed: the stream of random numbers that the sampler draws from; guide: what the request's grammar allows, where it
    has one; pool collects the hidden states of a prompt whose embedding is wanted instead of an answer; leader: the
    first sequence of the request where it has several.
    """

    request: GenerateRequest
    context: int
    seed: int
    pool: Pool | None = None
    leader: Sequence | None = None
    tokens: list[int] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    drafts: list[int] = field(default_factory=list)
    lookup: Lookup = field(default_factory=Lookup)
    forced_trust: Trust = field(default_factory=Trust)
    draft_trust: Trust = field(default_factory=Trust)
    num_drafted: int = 0
    num_cached: int = 0
    num_generated: int = 0
    arrived: float = field(default_factory=time.monotonic)
    load_ns: int = 0
    prefilled: float | None = None
    finish_reason: str | None = None
    guide: Guide | None = None

    def __post_init__(self) -> None:
        self.tokens = list(self.request.prompt)
        self.trust = self.lookup.trust

    @property
    def admissible(self) -> bool:
        """Return whether the request may begin: its grammar, if any, is accepted."""
        return self.guide is None or self.guide.opened

    @property
    def pending(self) -> int:
        """Return how many tokens still have to go through the model."""
        return len(self.tokens) - self.num_cached

    @property
    def fits(self) -> bool:
        """Return whether the context holds the prompt and, unless its embedding is wanted, a token more."""
        return len(self.tokens) + (self.pool is None) <= self.context

    @property
    def may_skip(self) -> bool:
        """Return whether tokens that the cache holds already need not go through the model."""
        return self.pool is None or self.pool.pooling == "last"

    @property
    def position(self) -> int:
        """Return the index in the request of the token to be sampled next."""
        return len(self.request.prompt) + self.num_generated

    @property
    def draft_room(self) -> int:
        """Return how many drafts can be of use: the context and the answer's length bound them."""
        room = self.context - len(self.tokens)
        limit = self.request.max_tokens
        return max(0, room if limit is None else min(room, limit - self.num_generated - 1))

    def append(self, token: int) -> None:
        """Add a sampled token and set `finish_reason` where the answer ends with it."""
        if self.prefilled is None:
            self.prefilled = time.monotonic()
        self.num_generated += 1
        self.tokens.append(token)
        limit = self.request.max_tokens
        if token in self.request.stop_tokens:
            self.finish_reason = "stop"
        elif limit is not None and self.num_generated >= limit:
            self.finish_reason = "length"
        elif len(self.tokens) >= self.context:
            self._make_room()

    def _make_room(self) -> None:
        """Drop the older half of what lies after the first keep_tokens, or end where shifting is not wanted."""
        keep = min(self.request.keep_tokens, self.context // 2)
        drop = (len(self.tokens) - keep) // 2
        if not self.request.shift or drop < 1:
            self.finish_reason = "length"
            return
        del self.tokens[keep : keep + drop]
        self.digests = []
        self.lookup = Lookup()
        self.num_cached = 0  # keys carry their position, so everything behind the cut is computed again

    def usage(self) -> Usage:
        """Return counts and durations so far."""
        now = time.monotonic()
        prefilled = self.prefilled or now
        return Usage(
            prompt_tokens=len(self.request.prompt),
            generated_tokens=self.num_generated,
            load_ns=self.load_ns,
            prompt_ns=int((prefilled - self.arrived) * 1e9),
            decode_ns=int((now - prefilled) * 1e9),
        )
