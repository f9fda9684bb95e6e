"""Put numbers onto grids so coarse that sums of their products are exact in fp64, whatever the order.

A grid holds the multiples of a step that is a power of two. Products of numbers on two grids lie on a third; as long as
their sum stays below 2^53 of its steps, fp64 holds every partial sum exactly. Then neither the blocking of a matrix
product, nor the shape of a batch, nor a cut over ranks can change a bit.
"""

from __future__ import annotations

import torch
from torch import Tensor

_SUM_BITS = 53  # significand of fp64
_KEPT_BITS = 24  # significand of fp32: what is kept in it, or less, stays on its grid
_EXPONENT = 0x7FF0000000000000  # of an fp64 as an integer
_SMALLEST = 2.0**-126


def sum_bits(length: int) -> tuple[int, int]:
    """Return how many bits the two factors of a sum of `length` products may have: computed ones, and kept ones."""
    left = _SUM_BITS - (length - 1).bit_length()
    kept = min(_KEPT_BITS, left // 2)
    return left - kept, kept


def reach(x: Tensor) -> Tensor:
    """Return the smallest power of two that no magnitude along the last axis of x [..., n] exceeds, as [..., 1]."""
    return power_of_two(largest(x))


def largest(x: Tensor) -> Tensor:
    """Return the largest magnitude along the last axis of x [..., n] as [..., 1] in fp64; 0 where n is 0."""
    return x.abs().amax(-1, keepdim=True).double() if x.shape[-1] else x.new_zeros((*x.shape[:-1], 1)).double()


def power_of_two(top: Tensor) -> Tensor:
    """Return the smallest power of two not below top [...], in fp64, for a top of 0 or more."""
    top = top.clamp(min=_SMALLEST)
    below = (top.view(torch.int64) & _EXPONENT).view(torch.float64)  # the sign and all but the leading bit cut off
    return torch.where(below < top, 2 * below, below)


def on_grid(x: Tensor, size: Tensor | float, bits: int) -> Tensor:
    """Return x [...] rounded to multiples of size / 2^bits in fp64; size is a power of two, or several [..., 1].

    Magnitudes up to size stay so, also where the result is rounded again, to fewer bits, in a cache or a file.
    """
    step = size * 2.0**-bits
    return (x.double() / step).round_().mul_(step)
