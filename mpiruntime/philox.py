"""Draw random numbers that depend on a key and a counter alone.

Philox 4x32 with 10 rounds: Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", 2011.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]  # 32-bit words, with room for their products

_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))
_ROUNDS = 10


def philox(counter: tuple[Words, Words, Words, Words], key: tuple[Words, Words]) -> tuple[Words, Words, Words, Words]:
    """Return the four 32-bit words [B] that belong to each counter and key."""
    (a, b, c, d), (k0, k1) = counter, key
    for _ in range(_ROUNDS):
        first, second = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]
        a, b, c, d = (second >> _SHIFT) ^ b ^ k0, second & _LOW, (first >> _SHIFT) ^ d ^ k1, first & _LOW
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return a, b, c, d


def uniforms(seeds: list[int], positions: list[int]) -> NDArray[np.float64]:
    """Return for each seed and position (64 bits each) the number in [0, 1) that belongs to it, with 53 random bits."""
    seed = np.array([s & (2**64 - 1) for s in seeds], dtype=np.uint64)
    position = np.array(positions, dtype=np.uint64)
    zero = np.zeros_like(seed)
    a, b, _, _ = philox((position & _LOW, position >> _SHIFT, zero, zero), (seed & _LOW, seed >> _SHIFT))
    return ((a >> np.uint64(5)).astype(np.float64) * 2.0**26 + (b >> np.uint64(6)).astype(np.float64)) / 2.0**53
