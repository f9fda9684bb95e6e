"""Multiply by weights on a GPU: few tokens by kernels of our own, many by torch's matrix product."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ollampi.kernels.cuda_module import Kernels
from ollampi.kernels.groups import ROWS
from ollampi.kernels.linear import Matrix
from ollampi.kernels.quantised import Quantised, dequantise

MOST_TOKENS = 4  # of our kernels: beyond, the matrix units win, which torch's product uses
_WARPS = 8  # in a block, as in kernels/cuda/matmul.cu
_PLAIN = {torch.float32: 0, torch.bfloat16: 1}
_SCALES = {torch.bfloat16: 1, torch.float16: 3}
_RESTORED_ROWS = 4096  # that are plain numbers at one time: the memory of a whole matrix is for other things


def linear(x: Tensor, weight: Matrix, bias: Tensor | None, kernels: Kernels | None) -> Tensor:
    """Return x [T, in] @ weight [out, in].T + bias [out] as [T, out]: in fp32 for few tokens, else maybe in bf16.

    kernels: None for torch's operators alone, which give the same but for rounding.
    """
    if kernels is not None and len(x) <= MOST_TOKENS:
        product = _few(x.float().contiguous(), weight, kernels)
    elif isinstance(weight, Tensor):
        return F.linear(x.to(weight.dtype), weight, bias)
    elif kernels is None:
        product = F.linear(x.to(weight.dtype), dequantise(weight).to(weight.dtype))
    else:
        product = _many(x.to(weight.dtype), weight, kernels)
    return product if bias is None else product + bias


def _few(x: Tensor, weight: Matrix, kernels: Kernels) -> Tensor:
    """Return x [T, in] times the weight, transposed, as fp32 [T, out]."""
    num_rows, width = weight.shape
    out = torch.empty(len(x), num_rows, device=x.device)
    if not out.numel():
        return out
    if isinstance(weight, Quantised):
        constants = {"BITS": weight.bits, "SCALES": _SCALES[weight.scales.dtype], "TOKENS": len(x)}
        kernel = kernels.get("matmul.cu", "multiply_panels", **constants)
        kernel((-(-num_rows // ROWS), 1, 1), 32 * _WARPS, [weight.weights, weight.scales, x, out, num_rows, width])
    else:
        kernel = kernels.get("matmul.cu", "multiply_plain", KEPT=_PLAIN[weight.dtype], TOKENS=len(x))
        kernel((-(-num_rows // (2 * _WARPS)), 1, 1), 32 * _WARPS, [weight, x, out, num_rows, width])
    return out


def _many(x: Tensor, weight: Quantised, kernels: Kernels) -> Tensor:
    """Return x [T, in] times the matrix, transposed, as [T, out] in its dtype; few rows are restored at a time."""
    out = torch.empty(len(x), weight.num_rows, dtype=weight.dtype, device=x.device)
    for first in range(0, weight.num_rows, _RESTORED_ROWS):
        last = min(first + _RESTORED_ROWS, weight.num_rows)
        out[:, first:last] = F.linear(x, restored(weight, first, last, kernels))
    return out


def restored(matrix: Quantised, first: int, last: int, kernels: Kernels) -> Tensor:
    """Return rows first to last of the matrix as plain numbers [R, in] in its dtype; first begins a panel."""
    out = torch.empty(last - first, matrix.width, dtype=matrix.dtype, device=matrix.weights.device)
    panels = slice(first // ROWS, -(-last // ROWS))
    constants = {"BITS": matrix.bits, "SCALES": _SCALES[matrix.scales.dtype], "KEPT": _PLAIN[matrix.dtype]}
    kernel = kernels.get("matmul.cu", "restore", **constants)
    held = [matrix.weights[panels], matrix.scales[panels]]
    kernel((panels.stop - panels.start, 1, 1), 32 * _WARPS, [*held, out, last - first, matrix.width])
    return out
