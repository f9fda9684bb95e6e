"""Multiply by a weight matrix: the one call site that will pick a kernel for the weight format and token count."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x [T, in] @ weight [out, in].T + bias [out] as [T, out] in the dtype of the weight."""
    return F.linear(x.to(weight.dtype), weight, bias)
