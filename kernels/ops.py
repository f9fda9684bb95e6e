"""Compute the small per-token operations of a decoder layer; the torch forms define what the native ones give."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ollampi.kernels import native


def rms_norm(x: Tensor, weight: Tensor, eps: float, level: int | None = None) -> Tensor:
    """Return x [T, D] divided by its root mean square and scaled by weight [D], in fp32.

    Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019. level: of native.levels(); None for the best.
    """
    if not (native.serves(x) and native.serves(weight)):
        return rms_norm_torch(x, weight, eps)
    x = x.float().contiguous()
    out = torch.empty_like(x)
    how = native.level() if level is None else level
    type_ = native.number_of(weight.dtype)
    native.call("rms_norm", how, x.data_ptr(), weight.data_ptr(), type_, eps, *x.shape, out.data_ptr())
    return out


def rms_norm_torch(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return the same as `rms_norm` [T, D], by torch; sums differ by rounding."""
    x = x.float()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight.float()


def silu_multiply(gate_up: Tensor, level: int | None = None) -> Tensor:
    """Return silu(gate) * up as [T, F] for gate and up side by side in gate_up [T, 2F], in its dtype.

    Shazeer, "GLU Variants Improve Transformer", 2020. level: of native.levels(); None for the best.
    """
    if not native.serves(gate_up):
        return silu_multiply_torch(gate_up)
    gate_up = gate_up.contiguous()
    num_tokens, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty(num_tokens, width, dtype=gate_up.dtype)
    how = native.level() if level is None else level
    type_ = native.number_of(gate_up.dtype)
    native.call("silu_multiply", how, gate_up.data_ptr(), type_, num_tokens, width, out.data_ptr())
    return out


def silu_multiply_torch(gate_up: Tensor) -> Tensor:
    """Return the same as `silu_multiply` [T, F], by torch."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return x [T, H, d] of which the first r numbers are turned by the angles whose cos and sin are [T, r/2].

    In the dtype of x. Element i of a head is paired with element i + r/2, as the Hugging Face checkpoints of the Llama
    family are laid out. Su et al., "RoFormer", 2021.
    """
    half = cos.shape[1]
    first, second, rest = torch.split(x.float(), [half, half, x.shape[-1] - 2 * half], dim=-1)
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1).to(x.dtype)
