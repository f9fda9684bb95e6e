"""Compute the angles by which queries and keys are turned."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ollampi.mpiruntime.arithmetic import Arithmetic
from ollampi.mpiruntime.rope import Rope

CPU = torch.device("cpu")


class RotaryTable:
    """cos and sin of the rotary angles for every position: two tensors [context, dim / 2] in fp32.

    Scalings that depend on the length of the text go by the context that the model was loaded with, so that what the
    cache keeps of one text serves another.
    """

    def __init__(self, rope: Rope, context: int, arithmetic: Arithmetic, device: torch.device = CPU) -> None:
        angles = torch.outer(torch.arange(context, dtype=torch.float32), inverse_frequencies(rope, context))
        self.cos, self.sin = arithmetic.cos_sin(angles)
        if rope.magnitude != 1:
            self.cos, self.sin = self.cos * rope.magnitude, self.sin * rope.magnitude
        self.cos, self.sin = self.cos.to(device), self.sin.to(device)

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return cos, sin [T, dim / 2] of positions [T]."""
        return self.cos[positions], self.sin[positions]


def inverse_frequencies(rope: Rope, context: int) -> Tensor:
    """Return the angle per position of each pair of a head, [dim / 2] in fp32, for texts of up to `context` positions.

    "llama3" follows the report "The Llama 3 Herd of Models", 2024, "yarn" Peng et al., "YaRN", 2023, "dynamic" its
    section on dynamic NTK scaling, all as the Hugging Face configs parametrise them.
    """
    exponents = torch.arange(0, rope.dim, 2, dtype=torch.float32) / rope.dim
    theta = rope.theta
    if rope.kind == "dynamic" and context > rope.original_context:
        stretch = rope.factor * context / rope.original_context - (rope.factor - 1)
        theta *= stretch ** (rope.dim / max(1, rope.dim - 2))
    plain = 1 / theta**exponents
    if rope.kind == "linear":
        return plain / rope.factor
    if rope.kind == "longrope":
        factors = rope.long_factors if context > rope.original_context else rope.short_factors
        return plain / torch.tensor(factors)
    kept = _kept(rope, plain)
    return plain if kept is None else kept * plain + (1 - kept) * plain / rope.factor


def _kept(rope: Rope, plain: Tensor) -> Tensor | None:
    """Return the share [dim / 2] of each frequency that is not stretched by the factor; None for all of it."""
    if rope.kind == "llama3":
        # waves longer than original_context / low_freq_factor are stretched, those shorter than original_context /
        # high_freq_factor are kept, and in between both are mixed linearly in 1 / wavelength
        turns = rope.original_context * plain / (2 * math.pi)  # over the original context
        return ((turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)).clamp(0, 1)
    if rope.kind != "yarn":
        return None

    def pair_of(turns: float) -> float:
        """Return the pair, between two of them, that turns so often over the original context."""
        return rope.dim * math.log(rope.original_context / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = pair_of(rope.beta_fast), pair_of(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.dim - 1)
    pairs = torch.arange(rope.dim // 2, dtype=torch.float32)
    return 1 - ((pairs - low) / (high - low if high != low else 0.001)).clamp(0, 1)
