"""Hand out the blocks of the KV cache, take them back, and find those that already hold a prompt's beginning."""

from __future__ import annotations

import hashlib
import heapq
from array import array
from collections import Counter, OrderedDict
from collections.abc import Iterable

from ollampi.mpiruntime.errors import OllampiError


def block_digest(before: bytes, tokens: list[int]) -> bytes:
    """Return what names the content of a full block: its tokens and, through `before`, all tokens ahead of it.

    128 bits of BLAKE2b: nobody can make two prompts share a block that should not.
    """
    return hashlib.blake2b(before + array("i", tokens).tobytes(), digest_size=16).digest()


class BlockManager:
    """The blocks of one cache and who holds them; runs on rank 0 only.

    A block that nobody holds keeps its content until it is needed: blocks without content go first, the lowest of them
    first, so that a sequence's blocks tend to be neighbours, which attention reads in place; then the least recently
    used ones.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._blank = list(range(num_blocks))  # a heap: nobody holds them and they have no content worth keeping
        self._kept: OrderedDict[int, None] = OrderedDict()  # nobody holds them; the least recently used first
        self._holders = [0] * num_blocks
        self._digests: list[bytes | None] = [None] * num_blocks
        self._with: dict[bytes, int] = {}  # the digest's block

    @property
    def num_free(self) -> int:
        """Return the number of blocks that nobody holds."""
        return len(self._blank) + len(self._kept)

    def blocks_for(self, num_tokens: int) -> int:
        """Return how many blocks hold `num_tokens` positions."""
        return -(-num_tokens // self.block_size)

    def allocate(self, count: int) -> list[int]:
        """Return `count` blocks for new content; raise OllampiError where fewer are free."""
        if count > self.num_free:
            raise OllampiError(f"{count} cache blocks wanted, {self.num_free} of {self.num_blocks} free")
        taken = [heapq.heappop(self._blank) if self._blank else self._forget_oldest() for _ in range(count)]
        for block in taken:
            self._holders[block] = 1
        return taken

    def has(self, digest: bytes) -> bool:
        """Return whether a block holds this content."""
        return digest in self._with

    def share(self, digests: Iterable[bytes]) -> list[int]:
        """Return the blocks with these contents up to the first that is not there; the caller holds them too now."""
        shared = []
        for digest in digests:
            block = self._with.get(digest)
            if block is None:
                break
            if not self._holders[block]:
                del self._kept[block]
            self._holders[block] += 1
            shared.append(block)
        return shared

    def name(self, block: int, digest: bytes) -> None:
        """Note the content of a full block, so that others can share it; the first block with a content keeps it."""
        if self._digests[block] is None and digest not in self._with:
            self._digests[block] = digest
            self._with[digest] = block

    def forget(self, blocks: list[int]) -> None:
        """Share the content of these blocks with nobody any more; they stay with those who hold them."""
        for block in blocks:
            digest, self._digests[block] = self._digests[block], None
            if digest is not None:
                del self._with[digest]

    def release(self, blocks: list[int]) -> None:
        """Take a sequence's blocks back; raise OllampiError for one that nobody holds."""
        for block in reversed(blocks):  # the end of a text is of use to fewer than its beginning
            if not self._holders[block]:
                raise OllampiError(f"cache block {block} was released twice")
            self._holders[block] -= 1
            if not self._holders[block]:
                if self._digests[block] is None:
                    heapq.heappush(self._blank, block)
                else:
                    self._kept[block] = None

    def check(self, held: list[list[int]]) -> None:
        """Raise OllampiError unless the tables in `held` and the free blocks account for every block."""
        holders = Counter(block for table in held for block in table)
        free = sorted([*self._blank, *self._kept])
        sound = (
            all(holders[block] == count for block, count in enumerate(self._holders))
            and free == [block for block, count in enumerate(self._holders) if not count]
            and all(self._digests[block] == digest for digest, block in self._with.items())
            and sum(digest is not None for digest in self._digests) == len(self._with)
        )
        if not sound:
            raise OllampiError(f"the accounting of {self.num_blocks} cache blocks is broken: {len(free)} are free")

    def _forget_oldest(self) -> int:
        """Return the least recently used block that nobody holds; its content is lost."""
        block, _ = self._kept.popitem(last=False)
        self.forget([block])
        return block
