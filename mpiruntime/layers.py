"""Hold the weights that a rank owns and multiply by them; only a layer knows how it is cut."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ollampi.kernels.linear import Matrix, take_rows
from ollampi.mpiruntime.arithmetic import Arithmetic
from ollampi.mpiruntime.checkpoint import Weights
from ollampi.mpiruntime.communicator import Communicator
from ollampi.mpiruntime.model_config import ModelConfig, Rope
from ollampi.mpiruntime.shard import Shard


class Norm:
    """RMSNorm, held whole on every rank."""

    def __init__(self, weights: Weights, width: int, eps: float) -> None:
        self.arithmetic = weights.arithmetic
        self.weight = weights.vector("weight", width)
        self.eps = eps

    def __call__(self, x: Tensor) -> Tensor:
        """Return the normalised x [T, D] in fp32."""
        return self.arithmetic.rms_norm(x, self.weight, self.eps)

    def summands(self, x: Tensor) -> Tensor:
        """Return the normalised x [T, D] in fp64, to be summed over tokens."""
        return self.arithmetic.summands(self(x), self.weight)

    def tensors(self) -> list[Matrix]:
        """Return the weights held."""
        return [self.weight]


class RowParallel:
    """A matrix [out, in] cut along its input: each rank multiplies its part and the results are summed."""

    def __init__(self, weights: Weights, shape: tuple[int, int], part: range, bias: bool, comm: Communicator) -> None:
        self.arithmetic = weights.arithmetic
        self.width = shape[1]
        self.weight = weights.columns("weight", shape, part)
        self.bias = weights.vector("bias", shape[0]) if bias else None
        self.comm = comm

    def __call__(self, x: Tensor) -> Tensor:
        """Return x @ weight.T + bias as [T, out] in fp32 for this rank's part of x [T, in]; collective."""
        total = self.arithmetic.linear_sum(x, self.weight, self.width, self.comm)
        return total if self.bias is None else total + self.bias.float()  # once, not once per rank

    def tensors(self) -> list[Matrix]:
        """Return the weights held."""
        return [self.weight] if self.bias is None else [self.weight, self.bias]


class Embedding:
    """The token table [V, D] cut by vocabulary; serves as the output head too where embeddings are tied."""

    def __init__(self, weights: Weights, config: ModelConfig, shard: Shard, comm: Communicator) -> None:
        self.arithmetic = weights.arithmetic
        self.rows = shard.of(config.vocab_size)
        self.weight = weights.rows("weight", (config.vocab_size, config.width), self.rows)
        self.comm = comm

    def __call__(self, tokens: Tensor) -> Tensor:
        """Return the rows of tokens [T] as [T, D] in fp32; collective. Every other rank adds zeros, so it is exact."""
        mine = (tokens >= self.rows.start) & (tokens < self.rows.stop)
        if not len(self.rows):
            return self.comm.all_reduce(torch.zeros(len(tokens), self.weight.shape[1]))
        found = take_rows(self.weight, (tokens - self.rows.start).clamp(0, len(self.rows) - 1))
        return self.comm.all_reduce(torch.where(mine[:, None], found, 0.0))  # times 0, infinity would be NaN

    def logits(self, x: Tensor) -> Tensor:
        """Return the logits [B, V of this rank] of x [B, D]."""
        return self.arithmetic.linear(x, self.weight)

    def tensors(self) -> list[Matrix]:
        """Return the weights held."""
        return [self.weight]


class RotaryTable:
    """cos and sin of the rotary angles for every position: two tensors [context, d/2] in fp32."""

    def __init__(self, rope: Rope, head_dim: int, context: int, arithmetic: Arithmetic) -> None:
        angles = torch.outer(torch.arange(context, dtype=torch.float32), inverse_frequencies(rope, head_dim))
        self.cos, self.sin = arithmetic.cos_sin(angles)

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return cos, sin [T, d/2] of positions [T]."""
        return self.cos[positions], self.sin[positions]


def inverse_frequencies(rope: Rope, head_dim: int) -> Tensor:
    """Return the angle per position of each pair of a head, [d/2] in fp32.

    "llama3" follows the report "The Llama 3 Herd of Models", 2024, as the Hugging Face configs parametrise it: waves
    longer than original_context / low_freq_factor are stretched by factor, those shorter than
    original_context / high_freq_factor are kept, and in between the two are mixed linearly in 1 / wavelength.
    """
    plain = rope.theta ** -(torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    if rope.kind == "default":
        return plain
    if rope.kind == "linear":
        return plain / rope.factor
    turns = rope.original_context * plain / (2 * math.pi)  # turns over the original context
    kept = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    kept = kept.clamp(0, 1)
    return kept * plain + (1 - kept) * plain / rope.factor
