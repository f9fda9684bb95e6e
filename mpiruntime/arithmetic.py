"""Choose between the two ways in which layers compute: the fast one, and the one whose bits depend on nothing else."""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ollampi.kernels import attention, elementary, exact, exact_attention, grid, linear, ops
from ollampi.kernels.attention import Scoring
from ollampi.kernels.choice import NATIVE, Choice
from ollampi.kernels.linear import Matrix
from ollampi.mpiruntime.communicator import Communicator
from ollampi.mpiruntime.errors import ModelError

_SPARE_BITS = 52  # of fp64's 53, less one for what rounding adds to a bound


class Arithmetic(Protocol):
    """What layers compute. Shapes and meanings as in the kernels of the same names."""

    attends_natively: bool  # where there is a library, and not by torch

    def weight_rows(self, rows: Tensor) -> Tensor:
        """Return what is kept of whole rows [R, in] of a matrix."""

    def linear(self, x: Tensor, weight: Matrix, bias: Tensor | None = None) -> Tensor:
        """Return x [T, in] @ weight [out, in].T + bias [out] as [T, out]."""

    def linear_part(self, x: Tensor, weight: Matrix, width: int, comm: Communicator) -> Tensor:
        """Return this rank's part [T, out] of x @ weight.T, which is to be summed over ranks; collective.

        x [T, in], weight [out, in]: this rank's part of an input of `width`.
        """

    def summed(self, total: Tensor) -> Tensor:
        """Return in fp32 what `linear_part` is a part of, of the sum [T, out] over ranks, which it may change."""

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Return the normalised x [T, D] in fp32."""

    def summands(self, hidden: Tensor, weight: Tensor) -> Tensor:
        """Return what rms_norm with weight [D] made, hidden [T, D], in fp64 as it is summed over tokens."""

    def gated(self, x: Tensor, weight: Matrix, bias: Tensor | None, activation: str = "silu") -> Tensor:
        """Return activation(gate) * up [T, F] of gate and up side by side, x [T, in] @ weight [2F, in].T + bias [2F].

        activation: as for `ops.gate_multiply`.
        """

    def capped(self, x: Tensor, cap: float) -> Tensor:
        """Return cap tanh(x / cap) of x [...] in fp32."""

    def cos_sin(self, angles: Tensor) -> tuple[Tensor, Tensor]:
        """Return the cosines and sines [...] of angles [...] in fp32."""

    def cached(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Return what is kept of keys and values [T, K, d]."""

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, kv_of_head: Tensor | None, scoring: Scoring
    ) -> Tensor:
        """Return the mix of v for each query as [N * T, H, d]."""


class Plain:
    """As fast as can be; the last bits depend on the shape of the batch and on the world.

    choice: up to how many tokens the native kernels multiply.
    """

    attends_natively = True

    def __init__(self, choice: Choice = NATIVE) -> None:
        self._choice = choice

    def weight_rows(self, rows: Tensor) -> Tensor:
        """Return the rows [R, in] as they are."""
        return rows

    def linear(self, x: Tensor, weight: Matrix, bias: Tensor | None = None) -> Tensor:
        """Return x @ weight.T + bias as [T, out] in the dtype of the weight."""
        return linear.linear(x, weight, bias, self._choice)

    def linear_part(self, x: Tensor, weight: Matrix, width: int, comm: Communicator) -> Tensor:
        """Return this rank's product [T, out] in the dtype of the weight; the others are not asked."""
        return linear.linear(x, weight, None, self._choice)

    def summed(self, total: Tensor) -> Tensor:
        """Return the sum [T, out] as it is."""
        return total

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Return the normalised x [T, D] in fp32."""
        return ops.rms_norm(x, weight, eps)

    def summands(self, hidden: Tensor, weight: Tensor) -> Tensor:
        """Return hidden [T, D] in fp64."""
        return hidden.double()

    def gated(self, x: Tensor, weight: Matrix, bias: Tensor | None, activation: str = "silu") -> Tensor:
        """Return activation(gate) * up [T, F]."""
        return linear.gated(x, weight, bias, self._choice, activation)

    def capped(self, x: Tensor, cap: float) -> Tensor:
        """Return cap tanh(x / cap) of x [...]."""
        return (x.float() / cap).tanh_().mul_(cap)

    def cos_sin(self, angles: Tensor) -> tuple[Tensor, Tensor]:
        """Return the cosines and sines [...] of angles [...]."""
        return angles.cos(), angles.sin()

    def cached(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values [T, K, d] as they are."""
        return k, v

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, kv_of_head: Tensor | None, scoring: Scoring
    ) -> Tensor:
        """Return the mix of v for each query as [N * T, H, d]."""
        return attention.attend(q, k, v, mask, kv_of_head, scoring)


class Exact:
    """The same bits whatever else is in the batch, however prompts are cut, and on any world; slower, CPUs only.

    longest: the positions that a query of the model may see at most.
    """

    attends_natively = False

    def __init__(self, longest: int) -> None:
        self.longest = longest

    def weight_rows(self, rows: Tensor) -> Tensor:
        """Return the rows [R, in] on their grids."""
        return exact.weight_rows(rows)

    def linear(self, x: Tensor, weight: Matrix, bias: Tensor | None = None) -> Tensor:
        """Return x @ weight.T + bias as [T, out] in fp32."""
        assert isinstance(weight, Tensor)
        return exact.linear(x, weight, bias)

    def linear_part(self, x: Tensor, weight: Matrix, width: int, comm: Communicator) -> Tensor:
        """Return this rank's product [T, out] in fp64, of which the sum over ranks is exact; collective.

        The ranks agree on the largest input of each token first, which their common grid depends on.
        """
        assert isinstance(weight, Tensor)
        told = comm.collect(grid.largest(x).numpy().tobytes())
        tops = np.stack([np.frombuffer(message) for message in told])
        size = grid.power_of_two(torch.from_numpy(tops.max(axis=0)))[:, None]
        return exact.linear_sums(x, size, weight, width)

    def summed(self, total: Tensor) -> Tensor:
        """Return the exact sum [T, out], rounded once."""
        return exact.rounded(total)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Return the normalised x [T, D] in fp32."""
        return exact.rms_norm(x, weight, eps)

    def summands(self, hidden: Tensor, weight: Tensor) -> Tensor:
        """Return hidden [T, D] in fp64, each column on a grid on which the sum of `longest` tokens is exact.

        It comes from the weight alone: RMSNorm makes nothing larger than sqrt(D) times that.
        """
        bound = grid.power_of_two(math.sqrt(len(weight)) * weight.double().abs())
        return grid.on_grid(hidden, bound, _SPARE_BITS - (self.longest - 1).bit_length())

    def gated(self, x: Tensor, weight: Matrix, bias: Tensor | None, activation: str = "silu") -> Tensor:
        """Return activation(gate) * up [T, F] in fp32; activation: "silu" or "gelu_tanh"."""
        return exact.gate_multiply(self.linear(x, weight, bias), activation)

    def capped(self, x: Tensor, cap: float) -> Tensor:
        """Return cap tanh(x / cap) of x [...]."""
        return cap * elementary.tanh(x / cap)

    def cos_sin(self, angles: Tensor) -> tuple[Tensor, Tensor]:
        """Return the cosines and sines [...] of angles [...]."""
        return elementary.cos_sin(angles)

    def cached(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values [T, K, d] on their grids."""
        return exact_attention.on_cache_grids(k, v, self.longest)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, kv_of_head: Tensor | None, scoring: Scoring
    ) -> Tensor:
        """Return the mix of v for each query as [N * T, H, d]."""
        return exact_attention.attend(q, k, v, mask, kv_of_head, scoring, self.longest)


def arithmetic(
    deterministic: bool, quantize: str, cache_dtype: str, longest: int, device: torch.device, choice: Choice
) -> Arithmetic:
    """Return the arithmetic that a model is loaded for; raise ModelError where something forbids it."""
    if not deterministic:
        return Plain(choice)
    if device.type != "cpu":
        raise ModelError(
            f"deterministic=true holds on CPUs only and this rank computes on {device.type}; use device=cpu"
        )
    if quantize != "none":
        raise ModelError(f"deterministic=true cannot compute with quantize={quantize}; use quantize=none")
    if cache_dtype == "int8":  # its vectors lie on no grid of powers of two
        raise ModelError("deterministic=true cannot read cache_dtype=int8; use auto, float32 or bfloat16")
    return Exact(longest)
