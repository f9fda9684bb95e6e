"""Weights of 8 or 4 bits in groups of 32 inputs: their format, and their product with activations.

A group of a row shares one scale in bf16; its weights are whole numbers times that scale, from -127 to 127 or from -8
to 7. Weights that a file brings so coded keep its scales, in fp16, and may be -128. Activations are rounded likewise
for the product, to 8 bits in groups of 32 with a scale in fp32. No group reaches over the cut of a rank, so neither
rounding depends on the number of ranks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ollampi.kernels import native
from ollampi.kernels.groups import GROUP, ROWS
from ollampi.kernels.ops import NATIVE_GATES, gate_multiply_torch
from ollampi.kernels.panels import by_panel, filled_up, in_panels, split, whole_numbers

_SMALLEST = 1e-30  # a group of activations that are all smaller counts as zeros
_LOWEST = {8: -127, 4: -8}
_HIGHEST = {8: 127, 4: 7}
_DIVISORS = {  # of the number of largest size in a group, tried for a scale
    8: [127.0],
    4: [-8.0, -7.0, -7.25, -7.5, -7.75, -8.25, -8.5, -8.75, -9.0, 7.0, 7.5, 8.0],
}


class NotFinite(ValueError):
    """NaN or infinity among numbers to be quantised."""


class NotExact(ValueError):
    """Numbers that are not what a quantised matrix holds exactly."""


@dataclass(frozen=True)
class Quantised:
    """A weight matrix [num_rows, width] of `bits` bits; dtype is that of products with it.

    weights: uint8 [panels, groups, 64 * bits] and scales: bfloat16 or float16 [panels, groups, 16], as
    kernels/cpu/matmul.h says.
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


def empty(
    num_rows: int, width: int, bits: int, dtype: torch.dtype = torch.float32, scales_dtype: torch.dtype = torch.bfloat16
) -> Quantised:
    """Return a matrix whose rows are to be set by `set_rows`, or by `set_codes` where its scales are float16."""
    panels, groups = -(-num_rows // ROWS), -(-width // GROUP)
    weights = torch.empty(panels, groups, 64 * bits, dtype=torch.uint8)
    scales = torch.empty(panels, groups, ROWS, dtype=scales_dtype)
    return Quantised(bits, num_rows, width, weights, scales, dtype)


def set_rows(matrix: Quantised, first: int, rows: Tensor) -> None:
    """Quantise rows [R, width] into the matrix; first is a multiple of 16, and R is unless these are the last rows.

    In 8 bits the number of largest size in a group becomes 127, in 4 bits what leaves the least squared error. Raise
    NotFinite; then the matrix is of no use.
    """
    if matrix.scales.dtype != torch.bfloat16:
        raise ValueError(f"set_rows makes scales in bfloat16, those of the matrix are {matrix.scales.dtype}")
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


def set_codes(matrix: Quantised, first: int, rows: Tensor, scales: Tensor) -> None:
    """Set rows [R, width] that are whole numbers times scales float16 [R, width / 32], exactly; R as for `set_rows`.

    Whole numbers lie from -128 to 127, or from -8 to 7. Raise NotFinite, or NotExact where a number is anything else;
    then the matrix is of no use.
    """
    if matrix.scales.dtype != torch.float16 or matrix.width % GROUP:
        raise ValueError(
            f"set_codes needs scales in float16 and a width that is a multiple of {GROUP},"
            f" not {matrix.scales.dtype} and {matrix.width}; use set_rows"
        )
    library, panels = native.library(), slice(first // ROWS, (first + len(rows) + ROWS - 1) // ROWS)
    rows, scales = rows.float().contiguous(), scales.contiguous()
    weights, kept = matrix.weights[panels], matrix.scales[panels]
    if library is None:
        exact = _set_codes_torch(rows, scales, matrix.bits, weights, kept)
    else:
        sizes = *rows.shape, rows.stride(0), matrix.bits
        exact = library.ollampi_set_codes(
            rows.data_ptr(), scales.data_ptr(), *sizes, weights.data_ptr(), kept.data_ptr()
        )
    if not exact:
        check_finite(rows)
        check_finite(scales)
        raise NotExact


def _set_codes_torch(rows: Tensor, scales: Tensor, bits: int, weights: Tensor, kept: Tensor) -> bool:
    """Set weights and kept scales as `set_codes` does, by torch; return whether they hold the rows exactly."""
    scale = F.pad(scales, (0, 0, 0, -len(scales) % ROWS))
    groups, middle = split(filled_up(rows), 1, -1, GROUP), 1 << (bits - 1)
    codes = torch.where(scale[..., None] == 0, 0, groups / scale.float()[..., None]).round()
    weights.copy_(in_panels((codes.clamp(-middle, middle - 1) + middle).to(torch.uint8), bits))
    kept.copy_(by_panel(scale))
    within = (codes >= -middle) & (codes < middle)
    return bool((within & (codes * scale.float()[..., None] == groups)).all())


def check_finite(rows: Tensor) -> None:
    """Raise NotFinite where a number of rows is NaN, or infinite in fp32."""
    if not rows.float().isfinite().all():
        raise NotFinite


def take_rows(matrix: Quantised, rows: Tensor) -> Tensor:
    """Return some rows [R] of the matrix as fp32 [R, width]."""
    if native.library() is None or not matrix.weights.is_cpu:
        return take_rows_torch(matrix, rows)
    rows = rows.contiguous()
    out = torch.empty(rows.shape[0], matrix.width)
    held = matrix.weights.data_ptr(), matrix.scales.data_ptr(), native.number_of(matrix.scales.dtype)
    native.call("take_rows", matrix.bits, *held, matrix.width, rows.data_ptr(), rows.shape[0], out.data_ptr())
    return out


def take_rows_torch(matrix: Quantised, rows: Tensor) -> Tensor:
    """Return the same as `take_rows` [R, width], by torch."""
    panels, places = rows // ROWS, rows % ROWS
    quads = split(matrix.weights[panels], 2, matrix.bits, ROWS, 4)
    quads = quads.gather(3, places[:, None, None, None, None].expand(*quads.shape[:3], 1, 4))
    scales = matrix.scales[panels].gather(2, places[:, None, None].expand(*quads.shape[:2], 1))
    return (
        whole_numbers(quads, matrix.bits)
        .flatten(3)
        .mul(scales.float().transpose(1, 2)[..., None])
        .flatten(1)[:, : matrix.width]
    )


def moved(matrix: Quantised, device: torch.device) -> Quantised:
    """Return the matrix on a device."""
    return replace(matrix, weights=matrix.weights.to(device), scales=matrix.scales.to(device))


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
    groups = split(filled_up(weight), 1, -1, GROUP)
    largest = groups.gather(2, groups.abs().argmax(2, keepdim=True))
    scale = _best_scale(groups, largest.abs() if bits == 8 else largest, bits)
    stored = (_whole(groups, scale, bits) + (1 << (bits - 1))).to(torch.uint8)
    return Quantised(bits, weight.shape[0], weight.shape[1], in_panels(stored, bits), by_panel(scale[..., 0]))


def dequantise(matrix: Quantised) -> Tensor:
    """Return the matrix as fp32 [num_rows, width]."""
    numbers = whole_numbers(split(matrix.weights, 2, matrix.bits, ROWS, 4), matrix.bits)
    rows = numbers.flatten(3) * matrix.scales.float().transpose(1, 2)[..., None]
    return rows.flatten(2).flatten(0, 1)[: matrix.num_rows, : matrix.width]


def matmul(x: Tensor, matrix: Quantised, level: int | None = None, gated: str | None = None) -> Tensor:
    """Return x [T, in] times the matrix, transposed, as fp32 [T, out].

    gated: the first half of the rows goes through this activation, of ops.NATIVE_GATES, and is multiplied by the second
    half: [T, out / 2]; a half must be a multiple of 16. level: the instructions to use, of native.levels(); None for
    the best.
    """
    if native.library() is None:
        product = matmul_torch(x, matrix)
        return gate_multiply_torch(product, gated) if gated else product
    x = x.float().contiguous()
    out = torch.empty(x.shape[0], matrix.num_rows // 2 if gated else matrix.num_rows)
    native.call(
        "quantised",
        native.level() if level is None else level,
        matrix.bits,
        matrix.weights.data_ptr(),
        matrix.scales.data_ptr(),
        native.number_of(matrix.scales.dtype),
        matrix.num_rows,
        matrix.width,
        x.data_ptr(),
        x.shape[0],
        NATIVE_GATES[gated] if gated else 0,
        out.data_ptr(),
    )
    return out


def matmul_torch(x: Tensor, matrix: Quantised) -> Tensor:
    """Return the same as `matmul` [T, out], by torch; sums differ by rounding."""
    return rounded(x) @ dequantise(matrix).T


def rounded(x: Tensor) -> Tensor:
    """Return activations x [T, in] as they take part in the product, in fp32; NaN in groups that are not finite."""
    groups = split(F.pad(x.float(), (0, -x.shape[1] % GROUP)), 1, -1, GROUP)
    largest = groups.abs().amax(2, keepdim=True)
    scale = torch.where(largest > _SMALLEST, largest / 127, torch.where(largest.isfinite(), 0.0, torch.nan))
    numbers = torch.where(largest > _SMALLEST, (groups * (127 / largest)).round(), 0.0)
    return (numbers * scale).flatten(1)[:, : x.shape[1]]


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
