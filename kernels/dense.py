"""Multiply few tokens by a matrix of plain numbers as fast as the memory gives its weights."""

from __future__ import annotations

import torch
from torch import Tensor

from ollampi.kernels import native


def matmul(x: Tensor, weight: Tensor, level: int | None = None) -> Tensor:
    """Return x [T, in] times weight [out, in], transposed, as [T, out]; computed in fp32, which is returned.

    weight: fp32 or bf16, contiguous, on the CPU. A token's sums do not depend on the other tokens. level: the
    instructions to use, of native.levels(); None for the best. Needs the native library.
    """
    x = x.float().contiguous()
    out = torch.empty(x.shape[0], weight.shape[0])
    native.call(
        "dense",
        native.level() if level is None else level,
        native.number_of(weight.dtype),
        weight.data_ptr(),
        *weight.shape,
        x.data_ptr(),
        x.shape[0],
        out.data_ptr(),
    )
    return out


def matmul_torch(x: Tensor, weight: Tensor) -> Tensor:
    """Return the same as `matmul` [T, out], by torch; sums differ by rounding."""
    return x.float() @ weight.float().T
