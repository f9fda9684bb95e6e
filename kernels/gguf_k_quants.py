"""Quantise rows of numbers into the super-blocks of ggml's types Q4_K, Q5_K and Q6_K.

A super-block holds 256 numbers. In Q4_K and Q5_K each 32 of them are codes times a scale less a minimum, in Q6_K each
16 are codes times a scale; these are small whole numbers times one or two fp16 numbers of the super-block. The layouts
are those of ggml-common.h (block_q4_K, block_q5_K, block_q6_K), which the `gguf` package's quants.py reads as well.
https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

SUPER = 256
_GROUP, _SHORT_GROUP = 32, 16  # numbers that share a scale
_STRETCHES = {15: (-1.2, -0.9, -0.6, -0.3, 0.0, 0.3, 0.6), 31: (-0.8, -0.4, 0.0, 0.4)}  # added to the highest code
_STEPS_OF_32 = (-3.0, -2.4, -1.8, -1.2, -0.6, 0.0, 0.6, 1.2)  # likewise in Q6_K


def q4_k(rows: Floats) -> Bytes:
    """Return rows [R, width] as blocks [R * width / 256, 144]; width is a multiple of 256."""
    head, codes = _with_minimum(rows, 15)
    return np.concatenate([head, halves(codes, 64)], axis=1)


def q5_k(rows: Floats) -> Bytes:
    """Return rows [R, width] as blocks [R * width / 256, 176]; width is a multiple of 256."""
    head, codes = _with_minimum(rows, 31)
    high = np.packbits((codes >> 4).reshape(-1, 8, _GROUP).swapaxes(1, 2), axis=2, bitorder="little")
    return np.concatenate([head, high.reshape(len(codes), -1), halves(codes & np.uint8(15), 64)], axis=1)


def q6_k(rows: Floats) -> Bytes:
    """Return rows [R, width] as blocks [R * width / 256, 210]; width is a multiple of 256."""
    lanes = _lanes(rows, _SHORT_GROUP)
    scales = _best_scales(lanes)
    per_block = scales.reshape(-1, SUPER // _SHORT_GROUP)
    largest = _first_of_largest(per_block)
    whole = (largest * np.float32(-1 / 128)).astype(np.float16)
    exact = whole.astype(np.float32)[:, None]
    small = np.clip(np.rint(per_block * inverse(exact)), -128, 127)
    codes = np.clip(np.rint(lanes * inverse((small * exact).ravel())), -32, 31)
    values = np.ascontiguousarray((codes + 32).astype(np.uint8).T).reshape(-1, SUPER)
    high = (values >> 4).reshape(-1, 2, 4, 32)
    high = high[:, :, 0] | high[:, :, 1] << 2 | high[:, :, 2] << 4 | high[:, :, 3] << 6
    parts = [halves(values & np.uint8(15), 128), high.reshape(-1, 64), small.astype(np.int8).view(np.uint8)]
    return np.concatenate([*parts, whole.view(np.uint8).reshape(-1, 2)], axis=1)


def _lanes(rows: Floats, group: int) -> Floats:
    """Return numbers as [group, groups], so that whatever is done for each group is done for neighbours in memory."""
    return np.ascontiguousarray(rows.reshape(-1, group).T)


def inverse(x: Floats) -> Floats:
    """Return 1 / x, 0 where that is not finite."""
    with np.errstate(divide="ignore", over="ignore"):
        found = 1 / x
    return np.where(np.isfinite(found), found, np.float32(0))


def _first_of_largest(x: Floats) -> Floats:
    """Return of each row of x [R, n] the number of the largest magnitude, as [R]."""
    return np.take_along_axis(x, np.abs(x).argmax(axis=1)[:, None], axis=1)[:, 0]


def _with_minimum(rows: Floats, highest: int) -> tuple[Bytes, Bytes]:
    """Return the scales [blocks, 16] as they stand in the file, and codes [blocks, 256] up to `highest`."""
    lanes = _lanes(rows, _GROUP)
    scales, minima = (each.reshape(-1, 8) for each in _best_lines(lanes, highest))
    whole = np.stack([scales.max(axis=1), minima.max(axis=1)], axis=1)
    whole = (whole * np.float32(1 / 63)).astype(np.float16)
    exact = whole.astype(np.float32)
    small = [np.minimum(np.rint(part * inverse(exact[:, i : i + 1])), 63) for i, part in enumerate((scales, minima))]
    scale, minimum = ((small[i] * exact[:, i : i + 1]).ravel() for i in range(2))
    codes = lanes + minimum
    codes *= inverse(scale)
    np.rint(codes, out=codes)
    np.clip(codes, 0, highest, out=codes)
    values = np.ascontiguousarray(codes.astype(np.uint8).T).reshape(-1, SUPER)
    return np.concatenate([whole.view(np.uint8), _packed(*(each.astype(np.uint8) for each in small))], axis=1), values


def _best_lines(lanes: Floats, highest: int) -> tuple[Floats, Floats]:
    """Return scales and minima [groups], none below 0, with which codes leave the least squared error.

    For each stretch numbers are made codes as if their range were so much longer or shorter, and the line through
    numbers over codes is the one of least squares.
    """
    low = np.minimum(lanes.min(axis=0), 0)
    above = lanes - low
    per_code = inverse(above.max(axis=0))
    sum_x = above.sum(axis=0)
    least = np.full(len(low), np.inf, np.float32)
    scales, minima = np.zeros_like(low), -low
    codes = np.empty_like(above)
    for stretch in _STRETCHES[highest]:
        np.multiply(above, per_code * np.float32(highest + stretch), out=codes)
        np.rint(codes, out=codes)
        np.minimum(codes, highest, out=codes)
        scale, start, error = _line(codes, above, sum_x, low)
        better = error < least
        least = np.where(better, error, least)
        scales = np.where(better, scale, scales)
        minima = np.where(better, -(start + low), minima)
    return scales, minima


def _line(codes: Floats, above: Floats, sum_x: Floats, low: Floats) -> tuple[Floats, Floats, Floats]:
    """Return scale and start of the line `scale * codes + start` nearest to `above`, where start + low is not above 0.

    And its squared error, less the sum of squares of `above`.
    """
    count = len(codes)
    sum_c = codes.sum(axis=0)
    sum_cc = np.einsum("ij,ij->j", codes, codes)
    sum_cx = np.einsum("ij,ij->j", codes, above)
    over = inverse(count * sum_cc - sum_c * sum_c)
    scale = (count * sum_cx - sum_c * sum_x) * over
    start = (sum_cc * sum_x - sum_c * sum_cx) * over
    beyond = start > -low
    start = np.where(beyond, -low, start)
    scale = np.where(beyond, (sum_cx - start * sum_c) * inverse(sum_cc), scale)
    error = scale * (scale * sum_cc + 2 * (start * sum_c - sum_cx)) + start * (count * start - 2 * sum_x)
    return scale, start, np.where(scale > 0, error, np.float32(np.inf))


def _best_scales(lanes: Floats) -> Floats:
    """Return scales [groups] with which codes from -32 to 31 leave the least squared error."""
    largest = _first_of_largest(lanes.T)
    per_code = inverse(largest)
    most = np.full(len(largest), -1, np.float32)
    scales = np.zeros_like(largest)
    codes = np.empty_like(lanes)
    for step in _STEPS_OF_32:
        np.multiply(lanes, per_code * np.float32(-32 - step), out=codes)
        np.rint(codes, out=codes)
        np.clip(codes, -32, 31, out=codes)
        sum_cc = np.einsum("ij,ij->j", codes, codes)
        sum_cx = np.einsum("ij,ij->j", codes, lanes)
        scale = sum_cx * inverse(sum_cc)
        better = scale * sum_cx > most  # what the squared error is less by
        most = np.where(better, scale * sum_cx, most)
        scales = np.where(better, scale, scales)
    return scales


def _packed(scales: Bytes, minima: Bytes) -> Bytes:
    """Return scales and minima [blocks, 8] of 6 bits in 12 bytes: high bits of the last four stand with the first."""
    first, last = slice(0, 4), slice(4, 8)
    lows = [each[:, first] | (each[:, last] >> 4) << 6 for each in (scales, minima)]
    return np.concatenate([*lows, scales[:, last] & 15 | minima[:, last] << 4], axis=1)


def halves(codes: Bytes, run: int) -> Bytes:
    """Return codes [blocks, 256] of 4 bits two in a byte: of each `run` the second half is the high ones."""
    runs = codes.reshape(len(codes), -1, 2, run // 2)
    return (runs[:, :, 0] | runs[:, :, 1] << np.uint8(4)).reshape(len(codes), -1)
