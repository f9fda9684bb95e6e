"""Draw random numbers that depend on a key and a counter alone.

Philox 4x32 with 10 rounds: Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", 2011.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]  # 32-bit words, with room for their products

_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_MULTIPLIERS = np.array([[0xD2511F53], [0xCD9E8D57]], dtype=np.uint64)
_WEYL = np.array([[0x9E3779B9], [0xBB67AE85]], dtype=np.uint64)
_ROUNDS = 10
_BLOCK = 256


def philox(counter: Words, key: Words) -> Words:
    """Return the four 32-bit words [4, B] that belong to each counter [4, B] and key [2, B]."""
    factors, others, key = counter[[0, 2]], counter[[1, 3]], key.copy()
    for _ in range(_ROUNDS):
        products = factors * _MULTIPLIERS
        factors, others = ((products >> _SHIFT)[::-1] ^ others ^ key), (products & _LOW)[::-1]
        key = (key + _WEYL) & _LOW
    return np.stack([factors[0], others[0], factors[1], others[1]])


def chance(seed: int, position: int) -> float:
    """Return the number in [0, 1) that belongs to a seed and a position; those of near positions are kept at hand."""
    return _block(seed, position // _BLOCK)[position % _BLOCK]


@lru_cache(maxsize=2048)
def _block(seed: int, number: int) -> list[float]:
    """Return the numbers of a block of positions: one call makes many as fast as few."""
    chances: list[float] = uniforms([seed] * _BLOCK, list(range(number * _BLOCK, (number + 1) * _BLOCK))).tolist()
    return chances


def uniforms(seeds: list[int], positions: list[int]) -> NDArray[np.float64]:
    """Return for each seed and position (64 bits each) the number in [0, 1) that belongs to it, with 53 random bits."""
    seed = np.array([s & (2**64 - 1) for s in seeds], dtype=np.uint64)
    position = np.array(positions, dtype=np.uint64)
    counter = np.zeros((4, len(seed)), dtype=np.uint64)
    counter[0], counter[1] = position & _LOW, position >> _SHIFT
    a, b, _, _ = philox(counter, np.stack([seed & _LOW, seed >> _SHIFT]))
    bits = (a >> np.uint64(5)) << np.uint64(26) | b >> np.uint64(6)
    chances: NDArray[np.float64] = bits * 2.0**-53
    return chances
