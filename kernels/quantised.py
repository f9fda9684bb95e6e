"""Weights of 8 or 4 bits in groups of 32 inputs: their format, and their product with activations.

A group of a row shares one scale in bf16; its weights are whole numbers times that scale, from -127 to 127 or from -8
to 7. Activations are rounded likewise for the product, to 8 bits in groups of 32 with a scale in fp32. No group
reaches over the cut of a rank, so neither rounding depends on the number of ranks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ollampi.kernels import native
from ollampi.kernels.groups import GROUP, ROWS
from ollampi.kernels.ops import silu_multiply_torch

_SMALLEST = 1e-30  # a group of activations that are all smaller counts as zeros
_LOWEST = {8: -127, 4: -8}
_HIGHEST = {8: 127, 4: 7}
_DIVISORS = {  # of the number of largest size in a group, tried for a scale
    8: [127.0],
    4: [-8.0, -7.0, -7.25, -7.5, -7.75, -8.25, -8.5, -8.75, -9.0, 7.0, 7.5, 8.0],
}


class NotFinite(ValueError):
    """NaN or infinity among numbers to be quantised."""


@dataclass(frozen=True)
class Quantised:
    """A weight matrix [num_rows, width] of `bits` bits; dtype is that of products with it.

    weights: uint8 [panels, groups, 64 * bits] and scales: bfloat16 [panels, groups, 16], as kernels/cpu/matmul.h says.
    """

    bits: int
    num_rows: int
    width: int
    weights: Tensor
    scales: Tensor
    dtype: torch.dtype = torch.float32

    @property
    def nbytes(self) -> int:
        """Return the memory that it takes."""
        return self.weights.nbytes + self.scales.nbytes

    @property
    def shape(self) -> tuple[int, int]:
        """Return rows and inputs."""
        return self.num_rows, self.width


def empty(num_rows: int, width: int, bits: int, dtype: torch.dtype = torch.float32) -> Quantised:
    """Return a matrix whose rows are to be set by `set_rows`."""
    panels, groups = -(-num_rows // ROWS), -(-width // GROUP)
    weights = torch.empty(panels, groups, 64 * bits, dtype=torch.uint8)
    scales = torch.empty(panels, groups, ROWS, dtype=torch.bfloat16)
    return Quantised(bits, num_rows, width, weights, scales, dtype)


def set_rows(matrix: Quantised, first: int, rows: Tensor) -> None:
    """Quantise rows [R, width] into the matrix; first is a multiple of 16, and R is unless these are the last rows.

    In 8 bits the number of largest size in a group becomes 127, in 4 bits what leaves the least squared error. Raise
    NotFinite; then the matrix is of no use.
    """
    library, panels = native.library(), slice(first // ROWS, (first + len(rows) + ROWS - 1) // ROWS)
    if library is None:
        check_finite(rows)
        part = quantise_torch(rows, matrix.bits)
        matrix.weights[panels], matrix.scales[panels] = part.weights, part.scales
        return
    if rows.dtype != torch.bfloat16 or rows.stride(1) != 1:
        rows = rows.float().contiguous()
    divisors = torch.tensor(_DIVISORS[matrix.bits])
    finite = library.ollampi_quantise_weights(
        rows.data_ptr(),
        rows.dtype == torch.bfloat16,
        *rows.shape,
        rows.stride(0),
        matrix.bits,
        divisors.data_ptr(),
        len(divisors),
        matrix.weights[panels].data_ptr(),
        matrix.scales[panels].data_ptr(),
    )
    if not finite:
        raise NotFinite


def check_finite(rows: Tensor) -> None:
    """Raise NotFinite where a number of rows is NaN, or infinite in fp32."""
    if not rows.float().isfinite().all():
        raise NotFinite


def take_rows(matrix: Quantised, rows: Tensor) -> Tensor:
    """Return some rows [R] of the matrix as fp32 [R, width]."""
    if native.library() is None:
        return take_rows_torch(matrix, rows)
    rows = rows.contiguous()
    out = torch.empty(rows.shape[0], matrix.width)
    held = matrix.weights.data_ptr(), matrix.scales.data_ptr()
    native.call("take_rows", matrix.bits, *held, matrix.width, rows.data_ptr(), rows.shape[0], out.data_ptr())
    return out


def take_rows_torch(matrix: Quantised, rows: Tensor) -> Tensor:
    """Return the same as `take_rows` [R, width], by torch."""
    panels, places = rows // ROWS, rows % ROWS
    quads = _split(matrix.weights[panels], 2, matrix.bits, ROWS, 4)
    quads = quads.gather(3, places[:, None, None, None, None].expand(*quads.shape[:3], 1, 4))
    scales = matrix.scales[panels].gather(2, places[:, None, None].expand(*quads.shape[:2], 1))
    return (
        _numbers(quads, matrix.bits)
        .flatten(3)
        .mul(scales.float().transpose(1, 2)[..., None])
        .flatten(1)[:, : matrix.width]
    )


def stored_bytes(num_rows: int, width: int, bits: int) -> int:
    """Return the memory of a matrix."""
    return -(-num_rows // ROWS) * ROWS * -(-width // GROUP) * (GROUP * bits // 8 + 2)


def quantise(weight: Tensor, bits: int) -> Quantised:
    """Return weight [out, in] in 8 or 4 bits; rows and inputs are filled up with zeros to whole panels and groups."""
    matrix = empty(weight.shape[0], weight.shape[1], bits)
    set_rows(matrix, 0, weight)
    return matrix


def quantise_torch(weight: Tensor, bits: int) -> Quantised:
    """Return weight [out, in] as `quantise` does, by torch; of two scales nearly as good it may choose the other."""
    groups = _split(_filled_up(weight), 1, -1, GROUP)
    largest = groups.gather(2, groups.abs().argmax(2, keepdim=True))
    scale = _best_scale(groups, largest.abs() if bits == 8 else largest, bits)
    stored = (_whole(groups, scale, bits) + (1 << (bits - 1))).to(torch.uint8)
    return Quantised(bits, weight.shape[0], weight.shape[1], _panels(stored, bits), _by_panel(scale[..., 0]))


def dequantise(matrix: Quantised) -> Tensor:
    """Return the matrix as fp32 [num_rows, width]."""
    numbers = _numbers(_split(matrix.weights, 2, matrix.bits, ROWS, 4), matrix.bits)
    rows = numbers.flatten(3) * matrix.scales.float().transpose(1, 2)[..., None]
    return rows.flatten(2).flatten(0, 1)[: matrix.num_rows, : matrix.width]


def matmul(x: Tensor, matrix: Quantised, level: int | None = None, gated: bool = False) -> Tensor:
    """Return x [T, in] times the matrix, transposed, as fp32 [T, out].

    gated: the first half of the rows goes through SiLU and is multiplied by the second half: [T, out / 2]; a half must
    be a multiple of 16. level: the instructions to use, of native.levels(); None for the best.
    """
    if native.library() is None:
        product = matmul_torch(x, matrix)
        return silu_multiply_torch(product) if gated else product
    x = x.float().contiguous()
    out = torch.empty(x.shape[0], matrix.num_rows // 2 if gated else matrix.num_rows)
    native.call(
        "quantised",
        native.level() if level is None else level,
        matrix.bits,
        matrix.weights.data_ptr(),
        matrix.scales.data_ptr(),
        matrix.num_rows,
        matrix.width,
        x.data_ptr(),
        x.shape[0],
        gated,
        out.data_ptr(),
    )
    return out


def matmul_torch(x: Tensor, matrix: Quantised) -> Tensor:
    """Return the same as `matmul` [T, out], by torch; sums differ by rounding."""
    return rounded(x) @ dequantise(matrix).T


def rounded(x: Tensor) -> Tensor:
    """Return activations x [T, in] as they take part in the product, in fp32; NaN in groups that are not finite."""
    groups = _split(F.pad(x.float(), (0, -x.shape[1] % GROUP)), 1, -1, GROUP)
    largest = groups.abs().amax(2, keepdim=True)
    scale = torch.where(largest > _SMALLEST, largest / 127, torch.where(largest.isfinite(), 0.0, torch.nan))
    numbers = torch.where(largest > _SMALLEST, (groups * (127 / largest)).round(), 0.0)
    return (numbers * scale).flatten(1)[:, : x.shape[1]]


def _filled_up(weight: Tensor) -> Tensor:
    """Return weight [out, in] in fp32 with zeros that make whole panels and groups."""
    return F.pad(weight.float(), (0, -weight.shape[1] % GROUP, 0, -weight.shape[0] % ROWS))


def _best_scale(groups: Tensor, largest: Tensor, bits: int) -> Tensor:
    """Return the bf16 scale [R, groups, 1] that leaves the least squared error of groups [R, groups, 32].

    largest [R, groups, 1]: of each group the number of largest size.
    """
    best = torch.zeros_like(largest, dtype=torch.bfloat16)
    least = torch.full_like(largest, math.inf)  # relative to the largest: squares of huge numbers are beyond fp32
    for divisor in _DIVISORS[bits]:
        scale = (largest / divisor).bfloat16()
        error = (_whole(groups, scale, bits) * scale.float() - groups).div(largest).square().sum(2, keepdim=True)
        better = (error < least) & (scale != 0) & scale.isfinite()
        best, least = torch.where(better, scale, best), torch.where(better, error, least)
    return best


def _whole(groups: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Return the whole numbers that groups [R, groups, 32] are rounded to with bf16 scales [R, groups, 1]."""
    exact = scale.float()
    return torch.where(exact == 0, 0, groups / exact).round().clamp(_LOWEST[bits], _HIGHEST[bits])


def _numbers(quads: Tensor, bits: int) -> Tensor:
    """Return the numbers [panels, R, groups, 8, 4] that bytes [panels, groups, bits, R, 4] stand for, in fp32."""
    if bits == 4:
        quads = torch.stack((quads & 15, quads >> 4), 3).flatten(2, 3)
    return quads.permute(0, 3, 1, 2, 4).float() - (1 << (bits - 1))


def _by_panel(rows: Tensor) -> Tensor:
    """Return rows [R, groups] as [panels, groups, 16]."""
    return _split(rows, 0, -1, ROWS).transpose(1, 2).contiguous()


def _panels(stored: Tensor, bits: int) -> Tensor:
    """Return numbers [R, groups, 32] as [panels, groups, 64 * bits]."""
    quads = _split(_split(stored, 2, 8, 4), 0, -1, ROWS).permute(0, 2, 3, 1, 4)  # [panels, groups, 8, 16, 4]
    if bits == 4:
        quads = quads[:, :, 0::2] | quads[:, :, 1::2] << 4
    return quads.flatten(2).contiguous()


def _split(x: Tensor, dim: int, *sizes: int) -> Tensor:
    """Return x with one dimension cut into several; -1 is what the others leave."""
    known = math.prod(size for size in sizes if size >= 0)
    sizes = tuple(x.shape[dim] // known if size < 0 else size for size in sizes)
    return x.reshape(*x.shape[:dim], *sizes, *x.shape[dim + 1 :])
