"""Compute the small per-token operations of a decoder layer; the torch forms define what the native ones give."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ollampi.kernels import native

NATIVE_GATES = {"silu": 1, "gelu_tanh": 2}  # as kernels/cpu/level.h numbers them
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "gelu": F.gelu,
}


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


def gate_multiply(gate_up: Tensor, activation: str, level: int | None = None) -> Tensor:
    """Return activation(gate) * up as [T, F] for gate and up side by side in gate_up [T, 2F], in its dtype.

    activation: "silu", "gelu_tanh" or "gelu"; the last one, by the error function, is torch's everywhere. Shazeer, "GLU
    Variants Improve Transformer", 2020. level: of native.levels(); None for the best.
    """
    if activation not in NATIVE_GATES or not native.serves(gate_up):
        return gate_multiply_torch(gate_up, activation)
    gate_up = gate_up.contiguous()
    num_tokens, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty(num_tokens, width, dtype=gate_up.dtype)
    how = native.level() if level is None else level
    type_ = native.number_of(gate_up.dtype)
    gate = NATIVE_GATES[activation]
    native.call("gate_multiply", how, gate, gate_up.data_ptr(), type_, num_tokens, width, out.data_ptr())
    return out


def gate_multiply_torch(gate_up: Tensor, activation: str) -> Tensor:
    """Return the same as `gate_multiply` [T, F], by torch."""
    gate, up = gate_up.chunk(2, dim=-1)
    return _ACTIVATIONS[activation](gate) * up


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return x [T, H, d] of which the first r numbers are turned by the angles whose cos and sin are [T, r/2].

    In the dtype of x. Element i of a head is paired with element i + r/2, as the Hugging Face checkpoints of the Llama
    family are laid out. Su et al., "RoFormer", 2021.
    """
    half = cos.shape[1]
    first, second, rest = torch.split(x.float(), [half, half, x.shape[-1] - 2 * half], dim=-1)
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1).to(x.dtype)
