"""Compute the small per-token operations of a decoder layer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return x [T, D] divided by its root mean square and scaled by weight [D], in fp32.

    Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019.
    """
    x = x.float()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight.float()


def silu_multiply(gate_up: Tensor) -> Tensor:
    """Return silu(gate) * up as [T, F] for gate and up side by side in gate_up [T, 2F].

    Shazeer, "GLU Variants Improve Transformer", 2020.
    """
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return x [T, H, d] turned by the angles whose cos and sin are [T, d/2], in the dtype of x.

    Element i of a head is paired with element i + d/2, as the Hugging Face checkpoints of the Llama family are laid
    out. Su et al., "RoFormer", 2021.
    """
    first, second = x.float().chunk(2, dim=-1)
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)
