"""Hand out the blocks of the KV cache and take them back."""

from __future__ import annotations

import heapq

from ollampi.mpiruntime.errors import OllampiError


class BlockManager:
    """The free blocks of one cache; runs on rank 0 only.

    The lowest free block goes first, so that a sequence's blocks tend to be neighbours, which attention reads in place.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._free = list(range(num_blocks))  # a heap
        self._is_free = [True] * num_blocks

    @property
    def num_free(self) -> int:
        """Return the number of blocks that nobody holds."""
        return len(self._free)

    def blocks_for(self, num_tokens: int) -> int:
        """Return how many blocks hold `num_tokens` positions."""
        return -(-num_tokens // self.block_size)

    def allocate(self, count: int) -> list[int]:
        """Return `count` blocks, lowest first; raise OllampiError where fewer are free."""
        if count > self.num_free:
            raise OllampiError(f"{count} cache blocks wanted, {self.num_free} of {self.num_blocks} free")
        taken = [heapq.heappop(self._free) for _ in range(count)]
        for block in taken:
            self._is_free[block] = False
        return taken

    def release(self, blocks: list[int]) -> None:
        """Take blocks back; raise OllampiError for one that is free already."""
        for block in blocks:
            if self._is_free[block]:
                raise OllampiError(f"cache block {block} was released twice")
            self._is_free[block] = True
            heapq.heappush(self._free, block)

    def check(self, held: list[list[int]]) -> None:
        """Raise OllampiError unless the tables in `held` and the free blocks are exactly all blocks, each once."""
        seen = sorted([*self._free, *(block for table in held for block in table)])
        if seen != list(range(self.num_blocks)):
            raise OllampiError(f"the accounting of {self.num_blocks} cache blocks is broken: {len(seen)} are known")
