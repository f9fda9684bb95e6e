"""Compute a decoder's operations so that a token's result depends on its own numbers alone, bit for bit.

Twins of kernels.linear and kernels.ops. All sums are exact (kernels.grid); what is left are single operations on
elements that IEEE 754 fixes, at a place of its own each.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ollampi.kernels.elementary import exp
from ollampi.kernels.grid import on_grid, reach, sum_bits

_TILE = 1 << 18  # weights that are converted to fp64 together: they stay in a core's cache until they are used
_SLOPE = 2 * math.sqrt(2 / math.pi)  # of GELU in its tanh form: 1 / (1 + e^-z) with z = _SLOPE x + _CURVE x^3
_CURVE = 0.044715 * _SLOPE


def weight_rows(rows: Tensor) -> Tensor:
    """Return whole rows [R, in] of a matrix on their grids, in fp64; fp32 and bf16 hold them as they are.

    What is 2^19 times smaller than the largest of its row is lost for in = 16384, what is 2^22 times smaller for 256.
    """
    _, kept = sum_bits(rows.shape[1])
    return on_grid(rows, reach(rows), kept)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x [T, in] @ weight [out, in].T + bias [out] as [T, out] in fp32 for rows that `weight_rows` made."""
    sums = linear_sums(x, reach(x), weight, weight.shape[1])
    return rounded(sums if bias is None else sums.add_(bias.double()))


def linear_sums(x: Tensor, size: Tensor, weight: Tensor, width: int) -> Tensor:
    """Return x [T, in] @ weight [out, in].T exactly as [T, out] in fp64, where x is rounded to a grid first.

    x and weight may be parts, cut along the input: width is that of the whole, and size [T, 1] the reach of all of x.
    """
    computed, _ = sum_bits(width)
    x = on_grid(x, size, computed)
    out = torch.empty((len(x), len(weight)), dtype=torch.float64)
    rows = max(1, _TILE // max(1, weight.shape[1]))
    for first in range(0, len(weight), rows):
        torch.mm(x, weight[first : first + rows].double().T, out=out[:, first : first + rows])
    return out


def rounded(sums: Tensor) -> Tensor:
    """Return exact sums [...] in fp32. The sign of a zero, which depends on the order of a sum, is made positive.

    Overwrites the sums.
    """
    return sums.add_(0.0).float()


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return x [T, D] divided by its root mean square and scaled by weight [D], in fp32."""
    _, bits = sum_bits(x.shape[1])
    coarse = on_grid(x, reach(x), bits)
    mean_square = (coarse * coarse).sum(-1, keepdim=True) / x.shape[1]
    return (x.double() * (1 / (mean_square + eps).sqrt_()) * weight.double()).float()


def gate_multiply(gate_up: Tensor, activation: str) -> Tensor:
    """Return activation(gate) * up as [T, F] for gate and up side by side in gate_up [T, 2F] in fp32.

    activation: "silu" or "gelu_tanh".
    """
    gate, up = gate_up.chunk(2, dim=-1)
    return gate / _DIVISORS[activation](gate) * up


def _silu_divisor(x: Tensor) -> Tensor:
    """Return 1 + e^-x [...]: SiLU is x over it. Infinity beyond the range of exp, so that nothing is left there."""
    return torch.where(x < -88, torch.inf, 1 + exp(-x))


def _gelu_divisor(x: Tensor) -> Tensor:
    """Return 1 + e^-z [...]: GELU in its tanh form is x over it. z in one part would show its rounding in e^-z."""
    wide = x.clamp(-16, 16).double()  # far beyond where the result is x or nothing
    z = wide * (_SLOPE + _CURVE * (wide * wide))
    rounded_z = z.float()
    power = exp(-rounded_z)
    return torch.where(z < -88, torch.inf, 1 + (power - power * (z - rounded_z).float()))


_DIVISORS = {"silu": _silu_divisor, "gelu_tanh": _gelu_divisor}
