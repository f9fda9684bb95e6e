"""Describe what a client asks of the engine and what the engine answers, as plain values for the wire."""

from __future__ import annotations

import math
from array import array
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

Sample = tuple[str, dict[str, str], Any]  # a metric's name, its labels, and a number or a histogram's plain values


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; names and defaults are those of Ollama's options.

    logit_bias: tokens with what is added to their logits.
    """

    temperature: float = 0.8
    top_k: int = 40  # 0 or less: off
    top_p: float = 0.9
    min_p: float = 0.0
    typical_p: float = 1.0
    repeat_last_n: int = 64  # 0: off, -1: the whole context
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None  # None: the engine draws one
    logprobs: bool = False
    top_logprobs: int = 0
    logit_bias: list[tuple[int, float]] = field(default_factory=list)

    @cached_property
    def penalises(self) -> bool:
        """Return whether tokens that were there before become less likely, or more."""
        return self.repeat_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0

    @cached_property
    def adjusts(self) -> bool:
        """Return whether logits are changed before a token is chosen."""
        return self.penalises or bool(self.logit_bias)

    @cached_property
    def limits(self) -> tuple[float, float, float, float]:
        """Return top_k, top_p, min_p and temperature as kernels.draw wants them."""
        return self.top_k, self.top_p if self.top_p < 1 else math.inf, self.min_p, self.temperature

    @cached_property
    def draws(self) -> bool:
        """Return whether chance plays a part."""
        return self.temperature > 0


@dataclass(frozen=True)
class ModelRef:
    """A model by its full name, the folder that holds it, and those of LoRA adapters that are merged into it."""

    name: str
    path: str
    adapters: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "adapters", tuple(self.adapters))  # the wire knows lists only


@dataclass(frozen=True)
class Grammar:
    """What an answer must be: text of a kind, schema (JSON schema), regex or lark (llguidance's dialect).

    reasoning: what may come before it, as the tags that open and close it, and whether the prompt has opened it.
    """

    kind: str
    text: str
    reasoning: tuple[str, str, bool] | None = None


@dataclass(frozen=True)
class GenerateRequest:
    """Continue `prompt` until a stop token, max_tokens, or the context is full.

    context: token limit of prompt and answer together; None takes the model's. When it is full, `shift` keeps the
    first `keep_tokens` and drops the older half of the rest; without shift the answer ends with reason "length".
    keep_alive_s: how long the model stays loaded afterwards; negative for ever, None the server's default. max_drafts:
    tokens that may be proposed for one step, 0 for plain decoding; timeout_s: after which the request ends with an
    error. None is the server's setting for both.
    """

    model: ModelRef
    prompt: list[int]
    sampling: Sampling = field(default_factory=Sampling)
    stop_tokens: list[int] = field(default_factory=list)
    max_tokens: int | None = None
    context: int | None = None
    keep_tokens: int = 4
    shift: bool = True
    keep_alive_s: float | None = None
    max_drafts: int | None = None
    timeout_s: float | None = None
    grammar: Grammar | None = None

    def to_wire(self) -> dict[str, Any]:
        """Return the request as a map of plain values."""
        return asdict(self)

    @classmethod
    def from_wire(cls, values: dict[str, Any]) -> GenerateRequest:
        """Return the request that `to_wire` wrote."""
        rest = {k: v for k, v in values.items() if k not in ("model", "sampling", "grammar")}
        grammar = Grammar(**values["grammar"]) if values.get("grammar") else None
        return cls(model=ModelRef(**values["model"]), sampling=Sampling(**values["sampling"]), grammar=grammar, **rest)


@dataclass(frozen=True)
class EmbedRequest:
    """Compute the embedding of each prompt (token ids as array("i")).

    pooling: the hidden state of the "last" or the "first" token, or the "mean" of all; context, keep_alive_s,
    timeout_s as in GenerateRequest.
    """

    model: ModelRef
    prompts: list[array[int]]
    pooling: str = "last"
    context: int | None = None
    keep_alive_s: float | None = None
    timeout_s: float | None = None

    def to_wire(self) -> dict[str, Any]:
        """Return the request as a map of plain values; prompts are bytes, which cost the reader nothing."""
        return {**vars(self), "model": asdict(self.model), "prompts": [prompt.tobytes() for prompt in self.prompts]}

    @classmethod
    def from_wire(cls, values: dict[str, Any]) -> EmbedRequest:
        """Return the request that `to_wire` wrote."""
        prompts = [array("i", data) for data in values["prompts"]]
        return cls(**{**values, "model": ModelRef(**values["model"]), "prompts": prompts})


@dataclass(frozen=True)
class TokenLogprob:
    """A token, its log-probability in nats, and the most likely tokens in its place."""

    token: int
    logprob: float
    top: list[tuple[int, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Usage:
    """What one request cost; durations in nanoseconds."""

    prompt_tokens: int = 0
    generated_tokens: int = 0
    load_ns: int = 0
    prompt_ns: int = 0
    decode_ns: int = 0


@dataclass(frozen=True)
class Readiness:
    """Whether a job is alive, and why it cannot serve now: a rank and a text each; it can where there are none.

    live: whether the engine's loop moves, or waits for other ranks.
    """

    live: bool
    reasons: list[tuple[int, str]] = field(default_factory=list)


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory: bytes over all ranks, and when it will be unloaded (epoch seconds, None for never).

    note: what makes its answers other than the model's own, such as an exchange that is approximate; mostly empty.
    """

    name: str
    path: str
    size_bytes: int
    gpu_bytes: int
    context_length: int
    expires_at: float | None
    note: str = ""
