"""Compute exp, tanh, cos and sin by additions and multiplications alone.

IEEE 754 fixes every bit of those. A library's exp does not: it has one form for whole vectors and another one for what
is left at the end of an array, so that a result could depend on where its number stands.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_LOWEST, _HIGHEST = -87.0, 88.0  # exp of these is a normal number of fp32
_LN2_HIGH = 355 / 512  # its product with an exponent is exact in fp32
_LN2_LOW = math.log(2) - _LN2_HIGH
_HALF_PI_HIGH = float.fromhex("0x1.921fb544p+0")  # its product with a whole number up to 2^20 is exact in fp64
_HALF_PI_LOW = float.fromhex("0x1.0b4611a626331p-34")
_EXP = [1 / math.factorial(k) for k in range(8)]
_COS = [(-1) ** k / math.factorial(2 * k) for k in range(9)]
_SIN = [(-1) ** k / math.factorial(2 * k + 1) for k in range(9)]


def exp(x: Tensor) -> Tensor:
    """Return e^x [...] in fp32 within 2^-22 of it, for x [...] in fp32; arguments beyond -87 and 88 count as these."""
    x = x.clamp(_LOWEST, _HIGHEST)
    exponent = (x * (1 / math.log(2))).round_()
    rest = (x - exponent * _LN2_HIGH).sub_(exponent * _LN2_LOW)
    power = ((exponent.int() + 127) << 23).view(torch.float32)  # 2^exponent, bit by bit
    return _polynomial(rest, _EXP).mul_(power)


def tanh(x: Tensor) -> Tensor:
    """Return tanh x [...] in fp32 within 2^-21, for x [...] in fp32."""
    return 1 - 2 / (exp(2 * x) + 1)


def cos_sin(angles: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cosines and sines [...] in fp32 of angles [...] from 0 to 2^20."""
    angles = angles.double()
    turns = (angles * (2 / math.pi)).round_()
    rest = (angles - turns * _HALF_PI_HIGH).sub_(turns * _HALF_PI_LOW)
    square = rest * rest
    cos, sin = _polynomial(square, _COS), _polynomial(square, _SIN).mul_(rest)
    quarter = turns.long() % 4
    crossed = quarter % 2 == 1
    cos, sin = torch.where(crossed, sin, cos), torch.where(crossed, cos, sin)
    cos, sin = torch.where((quarter == 1) | (quarter == 2), -cos, cos), torch.where(quarter > 1, -sin, sin)
    return cos.float(), sin.float()


def _polynomial(x: Tensor, coefficients: list[float]) -> Tensor:
    """Return the sum of coefficients[k] * x^k, by Horner's rule."""
    y = torch.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        y.mul_(x).add_(coefficient)
    return y
