"""Find blocks of the KV cache that are no longer what was written.

A full block whose content has a name is not written again as long as it has it (mpiruntime.block_manager). The first
look at such a block keeps the sum of its bytes, every later one compares.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from ollampi.mpiruntime.kv_cache import KVCache
from ollampi.mpiruntime.weight_check import byte_sum

FAULT = "the cache of keys and values is not what was written: bad memory?"


class CacheCheck:
    """What is known of the blocks of all models on one rank; used by its main thread."""

    def __init__(self) -> None:
        self._marks: dict[tuple[int, int], tuple[int, int]] = {}  # model and block: version and sum
        self._faults: set[tuple[int, int]] = set()

    def look(self, caches: Mapping[int, KVCache], blocks: Sequence[Sequence[int]], budget_s: float) -> list[str]:
        """Return what is wrong with the caches of this rank, after a look at as many blocks as the time allows.

        caches: by the numbers of their models; blocks: model, block and the version of its content, which differs
        whenever the block was written anew. At least one is looked at, where there is any.
        """
        until = time.perf_counter() + budget_s
        for number, block, version in blocks:
            if number in caches:
                self._look_at(caches[number], (number, block), version)
                if time.perf_counter() >= until:
                    break
        return [FAULT] if self._faults else []

    def forget(self, number: int) -> None:
        """Let go of a model."""
        self._marks = {at: mark for at, mark in self._marks.items() if at[0] != number}
        self._faults = {at for at in self._faults if at[0] != number}

    def _look_at(self, cache: KVCache, at: tuple[int, int], version: int) -> None:
        """Mark a block, or compare it with its mark."""
        total = sum(int(byte_sum(tensor)) for tensor in cache.in_block(at[1])) % (1 << 64)
        known, before = self._marks.get(at, (None, 0))
        self._faults.discard(at)
        if known != version:
            self._marks[at] = version, total
        elif total != before:
            self._faults.add(at)
