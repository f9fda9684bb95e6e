"""Read how a model turns queries and keys by their positions, and how that is scaled for a longer context."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ollampi.mpiruntime.config_fields import Fields
from ollampi.mpiruntime.errors import ModelError

_LEAST = 1e-3  # of what frequencies are divided by
ROPE_TYPES = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding: base, the numbers of a head that are turned, and how frequencies are scaled.

    Names and meanings of `kind` are those of Hugging Face's configs; mpiruntime.rotary has the formulas. magnitude:
    what cosines and sines are multiplied by. short_factors, long_factors: divisors of the frequencies ("longrope") in
    contexts up to original_context and beyond.
    """

    dim: int
    theta: float = 10000.0
    kind: str = "default"
    factor: float = 1.0
    original_context: int = 8192
    magnitude: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()

    def longest(self, max_context: int) -> int:
        """Return the longest context of a model whose config says max_context: some say what they were trained with."""
        if self.kind == "dynamic":
            return max(max_context, int(max_context * self.factor))
        if self.kind == "yarn":
            return max(max_context, int(self.original_context * self.factor))
        return max_context


def parse_rope(
    fields: Fields, scaling: Fields, head_dim: int, max_context: int, theta: float, kinds: dict[str, str]
) -> Rope:
    """Return the rotary embedding that `scaling` tells of: rope_parameters, or rope_scaling of older configs.

    theta: where neither says; kinds: other names of kinds in the family. Raise ModelError.
    """
    kind = scaling.text("rope_type", scaling.text("type", "default"))
    kind = kinds.get(kind, kind)
    if kind not in ROPE_TYPES:
        raise ModelError(
            f"{scaling.source}: rope type {kind!r:.40} is not supported; known are: {', '.join(ROPE_TYPES)}"
        )
    share = scaling.number("partial_rotary_factor", float, fields.number("partial_rotary_factor", float, 1.0))
    dim = int(head_dim * share)
    if not 2 <= dim <= head_dim or dim % 2:
        raise ModelError(
            f"{fields.source}: {dim} numbers of a head of {head_dim} would be turned (partial_rotary_factor {share});"
            " it must be an even number of them"
        )
    theta = scaling.number("rope_theta", float, fields.number("rope_theta", float, theta))
    if theta < 1:
        raise fields.wrong("rope_theta", f"{theta} is given; it must be at least 1")
    if kind == "default":
        return Rope(dim, theta)
    trained = fields.number("original_max_position_embeddings", int, max_context)
    original = scaling.number("original_max_position_embeddings", int, trained)
    if kind == "longrope":
        return _longrope(scaling, dim, theta, original, max_context)
    factor = scaling.number("factor", float, max_context / original if kind == "yarn" else None)
    if factor < _LEAST:
        raise scaling.wrong("factor", f"it must be at least {_LEAST}")
    if kind in ("linear", "dynamic"):
        return Rope(dim, theta, kind, factor, max_context)
    if kind == "yarn":
        return _yarn(scaling, dim, theta, factor, original)
    low, high = scaling.number("low_freq_factor", float), scaling.number("high_freq_factor", float)
    if high <= low:
        raise scaling.wrong("high_freq_factor", f"it must be above low_freq_factor, {low}")
    return Rope(dim, theta, kind, factor, original, low_freq_factor=low, high_freq_factor=high)


def _yarn(scaling: Fields, dim: int, theta: float, factor: float, original: int) -> Rope:
    """Return a rope of the kind "yarn"."""
    if theta <= 1:
        raise scaling.wrong("rope_theta", "yarn needs more than 1")
    fast, slow = scaling.number("beta_fast", float, 32.0), scaling.number("beta_slow", float, 1.0)
    if min(fast, slow) < _LEAST:
        raise scaling.wrong("beta_fast" if fast < _LEAST else "beta_slow", f"it must be at least {_LEAST}")
    mscale, of_all = scaling.optional("mscale", float), scaling.optional("mscale_all_dim", float)
    magnitude = _yarn_magnitude(factor, mscale) / _yarn_magnitude(factor, of_all) if mscale and of_all else None
    return Rope(
        dim,
        theta,
        "yarn",
        factor,
        original,
        scaling.number("attention_factor", float, magnitude or _yarn_magnitude(factor, 1.0)),
        beta_fast=fast,
        beta_slow=slow,
        truncate=scaling.flag("truncate", True),
    )


def _yarn_magnitude(factor: float, scale: float) -> float:
    """Return how much larger attention is made: Peng et al., "YaRN", 2023, equation 22."""
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0


def _longrope(scaling: Fields, dim: int, theta: float, original: int, max_context: int) -> Rope:
    """Return a rope of the kind "longrope": Ding et al., "LongRoPE", 2024."""
    factor = scaling.number("factor", float, max_context / original)
    if original < 2:
        raise scaling.wrong("original_max_position_embeddings", "longrope needs at least 2")
    magnitude = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    return Rope(
        dim,
        theta,
        "longrope",
        factor,
        original,
        scaling.number("attention_factor", float, magnitude),
        short_factors=scaling.numbers("short_factor", dim // 2),
        long_factors=scaling.numbers("long_factor", dim // 2),
    )
