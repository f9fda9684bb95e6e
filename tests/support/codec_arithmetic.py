"""The codecs once more, number by number with tables of all values: what kernels/codec.py is compared with."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

BF16 = (np.arange(0x7F81, dtype=np.uint32) << 16).view(np.float32)  # by its bits: from 0 to infinity
FP8 = np.array(
    [(8 + i % 8 if i > 7 else i % 8) * 2.0 ** (max(i // 8, 1) - 10) for i in range(127)]
)  # E4M3, by its bits
GROUP = 32


def nearest(table: NDArray[np.floating], size: float) -> int:
    """Return where the number of an ascending table that is nearest to a size stands; of two the even place."""
    above = min(int(np.searchsorted(table, size)), len(table) - 1)
    if above == 0:
        return 0
    over, under = float(table[above]) - size, size - float(table[above - 1])
    return above if over < under or (over == under and above % 2 == 0) else above - 1


def bf16(x: np.float32) -> int:
    """Return the bits of x in bf16."""
    if np.isnan(x):
        return 0x7FC0
    return (
        nearest(np.append(BF16[:-1].astype(float), 2.0**128), min(abs(float(x)), 2.0**128)) | int(np.signbit(x)) << 15
    )


def scale_of(group: Floats, level: int) -> int:
    """Return the bits of a group's scale."""
    if not np.isfinite(group).all():
        return 0x7FC0
    largest = np.abs(group).max()
    if largest < 2.0**-100:
        return 0
    if level == 4:
        return bf16((largest if largest > -group.min() else -largest) / np.float32(-8))
    return int(np.searchsorted(BF16, largest / np.float32({2: 127, 3: 448}[level])))


def of_bf16(bits: int) -> np.float32:
    """Return the number of such bits."""
    return np.uint32(bits << 16).view(np.float32)


def code_of(x: np.float32, scale: int, level: int) -> int:
    """Return the code of one number, a byte or its half."""
    factor = np.float32(0) if scale in (0, 0x7FC0) else np.float32(1) / of_bf16(scale)
    scaled = x * factor if factor else np.float32(0)
    if level == 2:
        return int(np.rint(scaled)) & 0xFF
    if level == 3:
        return nearest(FP8, abs(float(scaled))) | int(np.signbit(scaled)) << 7
    return min(max(int(np.rint(scaled)), -8), 7) + 8


def encoded(x: Floats, level: int) -> bytes:
    """Return the bytes of x [n]."""
    if level == 0:
        return x.astype("<f4").tobytes()
    if level == 1:
        return b"".join(bf16(number).to_bytes(2, "little") for number in x)
    codes, scales = b"", b""
    for group in np.append(x, np.zeros(-len(x) % GROUP, np.float32)).reshape(-1, GROUP):
        scale = scale_of(group, level)
        found = [code_of(number, scale, level) for number in group]
        codes += bytes(a | b << 4 for a, b in zip(found[:16], found[16:], strict=True)) if level == 4 else bytes(found)
        scales += scale.to_bytes(2, "little")
    return codes + scales


def number_of(code: int, level: int) -> float:
    """Return what a code stands for."""
    if level == 2:
        return code - 256 * (code > 127)
    if level == 3:
        return float(FP8[code & 127]) * (-1 if code > 127 else 1)
    return code - 8


def decoded(codes: bytes, count: int, level: int) -> Floats:
    """Return the numbers [count] of a vector."""
    if level == 0:
        return np.frombuffer(codes, "<f4")
    if level == 1:
        return np.array(
            [of_bf16(int.from_bytes(codes[i : i + 2], "little")) for i in range(0, 2 * count, 2)], np.float32
        )
    groups, width = -(-count // GROUP), GROUP // 2 if level == 4 else GROUP
    numbers: list[np.float32] = []
    for g in range(groups):
        part = codes[g * width : (g + 1) * width]
        whole = [byte & 15 for byte in part] + [byte >> 4 for byte in part] if level == 4 else list(part)
        at = groups * width + 2 * g
        scale = of_bf16(int.from_bytes(codes[at : at + 2], "little"))
        numbers += [np.float32(number_of(code, level)) * scale for code in whole]
    return np.array(numbers[:count], np.float32)
