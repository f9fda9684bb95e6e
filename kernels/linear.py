"""Multiply by a weight matrix: the one call site that will pick a kernel for the weight format and token count."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_STEP = 32


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x [T, in] @ weight [out, in].T + bias [out] as [T, out] in the dtype of the weight."""
    x = x.to(weight.dtype)
    missing = padded_rows(len(x)) - len(x) if weight.dtype == torch.bfloat16 else 0
    if not missing:
        return F.linear(x, weight, bias)
    # oneDNN compiles a kernel for every T that it meets and keeps them all: few different T bound their memory
    return F.linear(F.pad(x, (0, 0, 0, missing)), weight, bias)[: len(x)]


def padded_rows(count: int) -> int:
    """Return the number of rows to compute for `count` tokens: a power of two up to 32, else a multiple of 32."""
    return 1 << max(0, count - 1).bit_length() if count <= _STEP else -(-count // _STEP) * _STEP
