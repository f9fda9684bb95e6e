"""Multiply by a weight matrix: the one call site that picks a kernel for the weight format and token count."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ollampi.kernels import dense, native, quantised
from ollampi.kernels.choice import NATIVE, Choice
from ollampi.kernels.groups import ROWS
from ollampi.kernels.ops import NATIVE_GATES, gate_multiply
from ollampi.kernels.quantised import Quantised

Matrix = Tensor | Quantised  # [out, in]
_STEP = 32
_PLAIN = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
_QUANTISED = {8: "q8", 4: "q4"}


def format_of(weight: Matrix) -> str:
    """Return what a matrix is kept in, as kernels.choice names formats."""
    return _QUANTISED[weight.bits] if isinstance(weight, Quantised) else _PLAIN[weight.dtype]


def linear(x: Tensor, weight: Matrix, bias: Tensor | None = None, choice: Choice = NATIVE) -> Tensor:
    """Return x [T, in] @ weight [out, in].T + bias [out] as [T, out], in fp32 or in the dtype of the weight.

    choice: up to how many tokens the native kernels serve.
    """
    if isinstance(weight, Quantised):
        multiply = quantised.matmul if choice.is_native(format_of(weight), x.shape[0]) else quantised.matmul_torch
        product = multiply(x, weight)
    elif native.serves(weight) and choice.is_native(format_of(weight), x.shape[0]):
        product = dense.matmul(x, weight)
    else:
        return _by_torch(x.to(weight.dtype), weight, bias)
    return product if bias is None else product.add_(bias)


def gated(
    x: Tensor, weight: Matrix, bias: Tensor | None = None, choice: Choice = NATIVE, activation: str = "silu"
) -> Tensor:
    """Return activation(gate) * up [T, F] of what `linear` returns, gate and up side by side as [T, 2F]; in its dtype.

    choice: as for `linear`; activation: as for `ops.gate_multiply`.
    """
    if (
        isinstance(weight, Quantised)
        and bias is None
        and activation in NATIVE_GATES
        and weight.num_rows % (2 * ROWS) == 0
        and choice.is_native(format_of(weight), x.shape[0])
    ):
        return quantised.matmul(x, weight, gated=activation)  # nothing of twice the size goes to memory and back
    return gate_multiply(linear(x, weight, bias, choice), activation)


def _by_torch(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return what `linear` does by torch's operator; x has the dtype of the weight."""
    missing = padded_rows(len(x)) - len(x) if weight.dtype == torch.bfloat16 else 0
    if not missing:
        return F.linear(x, weight, bias)
    # oneDNN compiles a kernel for every T that it meets and keeps them all: few different T bound their memory
    return F.linear(F.pad(x, (0, 0, 0, missing)), weight, bias)[: len(x)]


def padded_rows(count: int) -> int:
    """Return the number of rows to compute for `count` tokens: a power of two up to 32, else a multiple of 32."""
    return 1 << max(0, count - 1).bit_length() if count <= _STEP else -(-count // _STEP) * _STEP


def take_rows(weight: Matrix, rows: Tensor) -> Tensor:
    """Return rows [R] of the weight as [R, in], in its dtype or in fp32."""
    if isinstance(weight, Quantised):
        return quantised.take_rows(weight, rows)
    return F.embedding(rows, weight)


def copy(weight: Matrix, into: Matrix) -> None:
    """Copy a matrix into another one of its shape and format."""
    if isinstance(weight, Quantised) and isinstance(into, Quantised):
        into.weights.copy_(weight.weights)
        into.scales.copy_(weight.scales)
    elif isinstance(weight, Tensor) and isinstance(into, Tensor):
        into.copy_(weight)
    else:
        raise TypeError(f"cannot copy a matrix in {format_of(weight)} into one in {format_of(into)}")
