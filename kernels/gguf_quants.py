"""Turn rows of numbers into the bytes of ggml's types, and those of a few types into numbers.

The blocks of 32 are those of ggml-common.h (block_q8_0, block_q5_0, block_q5_1), with the scales that ggml's reference
quantisers take for them; gguf_k_quants has the blocks of 256.
https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ollampi.kernels.gguf_k_quants import Bytes, Floats, halves, inverse, q4_k, q5_k, q6_k

GROUP = 32
LARGEST = 65504.0  # of fp16, in which all types but F32 and BF16 keep numbers or scales


def pack(kind: str, rows: Floats) -> Bytes:
    """Return rows [R, width] as bytes [R, bytes of a row]; the width must be whole blocks, all numbers finite."""
    return _PACKERS[kind](rows).reshape(len(rows), -1)


def unpack(kind: str, raw: Bytes) -> Floats:
    """Return the numbers of rows of bytes [R, bytes of a row] of F32, F16, BF16 or Q8_0 as [R, width]."""
    return _READERS[kind](raw)


def _f32(rows: Floats) -> Bytes:
    return np.ascontiguousarray(rows).view(np.uint8)


def _f16(rows: Floats) -> Bytes:
    return rows.astype(np.float16).view(np.uint8)


def _bf16(rows: Floats) -> Bytes:
    """Round to the nearest, ties to even."""
    bits = np.ascontiguousarray(rows).view(np.uint32)
    return ((bits + (0x7FFF + (bits >> 16 & 1))) >> 16).astype(np.uint16).view(np.uint8)


def _q8_0(rows: Floats) -> Bytes:
    groups = rows.reshape(-1, GROUP)
    scales = np.abs(groups).max(axis=1, keepdims=True)
    scales /= np.float32(127)
    numbers = groups * inverse(scales)
    whole = np.trunc(numbers)
    numbers -= whole
    numbers *= 2
    whole += np.trunc(numbers, out=numbers)  # halves away from zero, as C's roundf has them
    return np.concatenate([_half_bytes(scales), whole.astype(np.int8).view(np.uint8)], axis=1)


def _q5_0(rows: Floats) -> Bytes:
    groups = rows.reshape(-1, GROUP)
    largest = np.take_along_axis(groups, np.abs(groups).argmax(axis=1)[:, None], axis=1)
    scales = largest / np.float32(-16)
    codes = np.minimum(np.trunc(groups * inverse(scales) + np.float32(16.5)), 31).astype(np.uint8)
    return np.concatenate([_half_bytes(scales), *_five_bits(codes)], axis=1)


def _q5_1(rows: Floats) -> Bytes:
    groups = rows.reshape(-1, GROUP)
    low = groups.min(axis=1, keepdims=True)
    scales = (groups.max(axis=1, keepdims=True) - low) / np.float32(31)
    codes = np.minimum(np.trunc((groups - low) * inverse(scales) + np.float32(0.5)), 31).astype(np.uint8)
    return np.concatenate([_half_bytes(scales), _half_bytes(low), *_five_bits(codes)], axis=1)


def _half_bytes(x: Floats) -> Bytes:
    """Return numbers [R, 1] as fp16, [R, 2]."""
    return x.astype(np.float16).view(np.uint8)


def _five_bits(codes: Bytes) -> tuple[Bytes, Bytes]:
    """Return codes [groups, 32] as their fifth bits [groups, 4] and their halves of bytes [groups, 16]."""
    return np.packbits(codes >> 4, axis=1, bitorder="little"), halves(codes & np.uint8(15), GROUP)


def _read_f32(raw: Bytes) -> Floats:
    return raw.view(np.float32)


def _read_f16(raw: Bytes) -> Floats:
    return raw.view(np.float16).astype(np.float32)


def _read_bf16(raw: Bytes) -> Floats:
    wide = raw.view(np.uint16).astype(np.uint32)
    wide <<= 16
    return wide.view(np.float32)


def _read_q8_0(raw: Bytes) -> Floats:
    blocks = raw.reshape(-1, 2 + GROUP)
    scales = np.ascontiguousarray(blocks[:, :2]).view(np.float16).astype(np.float32)
    return (blocks[:, 2:].view(np.int8) * scales).reshape(len(raw), -1)


_PACKERS: dict[str, Callable[[Floats], Bytes]] = {
    "F32": _f32,
    "F16": _f16,
    "BF16": _bf16,
    "Q8_0": _q8_0,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q4_K": q4_k,
    "Q5_K": q5_k,
    "Q6_K": q6_k,
}
_READERS: dict[str, Callable[[Bytes], Floats]] = {
    "F32": _read_f32,
    "F16": _read_f16,
    "BF16": _read_bf16,
    "Q8_0": _read_q8_0,
}
READABLE = frozenset(_READERS)
