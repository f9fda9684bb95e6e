"""Keep the vectors of the KV cache in 8 bits: this torch code defines the format."""

from __future__ import annotations

import torch
from torch import Tensor

_LARGEST_CODE = 127
_LARGEST_SCALE = 2.0**121  # 127 times this is finite in every type that has the range of fp32


def encode(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return codes int8 [..., d] and scales bf16 [...] of vectors x [..., d] in fp32 or bf16.

    A vector's scale is its largest magnitude / 127, computed in fp32, rounded to bf16 and at most 2^121; its codes are
    x / scale in fp32, rounded to nearest even, from -127 to 127. So an element is off by at most half a scale, or 6e-39
    where the scale is denormal, up to 2^121 * 127. A vector of zeros has the scale 0 and codes 0; the codes of any
    other vector whose scale is 0 say nothing. A vector with an element that is not finite has the scale NaN. Vectors
    do not depend on each other, so any cut of the heads over ranks gives the same bits.
    """
    x = x.float()
    largest = x.abs().amax(-1, keepdim=True)
    nothing = largest * 0  # NaN where largest is not finite
    scale = (largest / _LARGEST_CODE).clamp_(max=_LARGEST_SCALE).add_(nothing).bfloat16()
    codes = (x / scale.float()).round_().nan_to_num_(0).clamp_(-_LARGEST_CODE, _LARGEST_CODE)
    return codes.to(torch.int8), scale.squeeze(-1)


def decode(codes: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """Return codes int8 [..., d] times scales bf16 [...] as [..., d] in dtype: exact in fp32, rounded once in bf16.

    A vector that had an element that is not finite is all NaN.
    """
    return codes.to(dtype).mul_(scales.to(dtype).unsqueeze(-1))
