"""A pool adds up the hidden states of one prompt."""

from __future__ import annotations

import numpy as np

from ollampi.mpiruntime.pool import Pool
from ollampi.mpiruntime.step import Chunk


def test_a_pool_adds_up_chunks_and_begins_again_with_the_prompt() -> None:
    first, second = Chunk([1, 2], 0, [0], 0, 2), Chunk([3], 2, [0], 0, 1)
    pool = Pool("mean")
    for turn in (1.0, 2.0):
        pool.add(first, np.array([2.0, 4.0]) * turn)
        pool.add(second, np.array([1.0, -1.0]) * turn)
        assert pool.embedding.tolist() == [turn, turn]
    assert pool.finite
    pool.add(second, np.array([np.inf, 0.0]))
    assert not pool.finite
    assert (Pool("last").wanted(5, last=False), Pool("last").wanted(5, last=True)) == ((0, 0), (1, 0))
    assert Pool("first").wanted(5, last=True) == (1, 4)
