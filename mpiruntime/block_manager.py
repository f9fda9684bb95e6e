"""Hand out the blocks of the KV cache, take them back, and find those that already hold a prompt's beginning."""

from __future__ import annotations

import hashlib
import heapq
from array import array
from collections import OrderedDict
from collections.abc import Iterable
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from ollampi.mpiruntime.errors import OllampiError

DIGEST_BYTES = 16
_NO_DIGEST = bytes(DIGEST_BYTES)
_LOOK = 2048  # blocks whose content one check looks at: what takes about 2 ms


def block_digest(before: bytes, tokens: list[int]) -> bytes:
    """Return what names the content of a full block: its tokens and, through `before`, all tokens ahead of it.

    128 bits of BLAKE2b: nobody can make two prompts share a block that should not.
    """
    return hashlib.blake2b(before + array("i", tokens).tobytes(), digest_size=DIGEST_BYTES).digest()


def _counts(tables: Iterable[list[int]], size: int) -> NDArray[np.int64]:
    """Return how often each of `size` blocks occurs; a block that there is not makes the counts longer or negative."""
    blocks = array("q")
    for table in tables:
        blocks.fromlist(table)
    found = np.array(blocks)
    return np.bincount(found, minlength=size) if not len(found) or found.min() >= 0 else np.array([-1])


class BlockManager:
    """The blocks of one cache and who holds them; runs on rank 0 only.

    A block that nobody holds keeps its content until it is needed: blocks without content go first, the lowest of them
    first, so that a sequence's blocks tend to be neighbours, which attention reads in place; then the least recently
    used ones. What is known of blocks grows with those that have ever been used, not with the cache.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._holders = array("i")  # of every block that was ever used; those were the lowest ones
        self._digests = bytearray()  # of the same blocks, end to end, as numpy can count them; or _NO_DIGEST
        self._with: dict[bytes, int] = {}  # the digest's block
        self._blank: list[int] = []  # a heap: used before, but nobody holds them and their content is not worth keeping
        self._kept: OrderedDict[int, None] = OrderedDict()  # nobody holds them; the least recently used first
        self._versions: OrderedDict[int, int] = OrderedDict()  # of all named blocks, in the order of `lasting`
        self._num_names = 0  # that blocks got so far
        self._looked = 0  # the next block whose content `check` looks at

    @property
    def num_free(self) -> int:
        """Return the number of blocks that nobody holds."""
        return self.num_blocks - len(self._holders) + len(self._blank) + len(self._kept)

    @property
    def unused_part(self) -> float:
        """Return the part of the blocks that nobody has ever held."""
        return 1 - len(self._holders) / self.num_blocks

    def blocks_for(self, num_tokens: int) -> int:
        """Return how many blocks hold `num_tokens` positions."""
        return -(-num_tokens // self.block_size)

    def allocate(self, count: int) -> list[int]:
        """Return `count` blocks for new content; raise OllampiError where fewer are free."""
        if count > self.num_free:
            raise OllampiError(f"{count} cache blocks wanted, {self.num_free} of {self.num_blocks} free")
        taken = [self._take() for _ in range(count)]
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
        if self._digest(block) == _NO_DIGEST and digest not in self._with:
            self._set_digest(block, digest)
            self._with[digest] = block
            self._num_names += 1
            self._versions[block] = self._num_names

    def forget(self, blocks: list[int]) -> None:
        """Share the content of these blocks with nobody any more; they stay with those who hold them."""
        for block in blocks:
            digest = self._digest(block)
            if digest != _NO_DIGEST:
                self._set_digest(block, _NO_DIGEST)
                del self._with[digest], self._versions[block]

    def lasting(self, most: int) -> list[tuple[int, int]]:
        """Return at most so many full blocks, all in turn, that nobody writes while their content keeps its name.

        With each a number that differs whenever the block got a name anew.
        """
        found = list(islice(self._versions.items(), most))
        for block, _ in found:
            self._versions.move_to_end(block)
        return found

    def release(self, blocks: list[int]) -> None:
        """Take a sequence's blocks back; raise OllampiError for one that nobody holds."""
        for block in reversed(blocks):  # the end of a text is of use to fewer than its beginning
            if not self._holders[block]:
                raise OllampiError(f"cache block {block} was released twice")
            self._holders[block] -= 1
            if not self._holders[block]:
                if self._digest(block) == _NO_DIGEST:
                    heapq.heappush(self._blank, block)
                else:
                    self._kept[block] = None

    def check(self, held: Iterable[list[int]]) -> bool:
        """Raise OllampiError unless the tables in `held` and the free blocks account for every block.

        One call looks at all holders and counts, but at the content of _LOOK blocks only, so that nobody waits for it
        long. Return whether it has come to the last block; else another call goes on.
        """
        used = len(self._holders)
        begin, end = self._looked, min(self._looked + _LOOK, used)
        self._looked = end if end < used else 0
        holders = np.array(self._holders)
        tables, blank = _counts(held, used), _counts([self._blank], used)
        sound = (
            used <= self.num_blocks
            and used * DIGEST_BYTES == len(self._digests)
            and np.array_equal(tables, holders)
            and np.count_nonzero(blank) == len(self._blank)
            and len(self._blank) + len(self._kept) == np.count_nonzero(holders == 0)
            and self._num_named() == len(self._with)
            and all(map(self._is_sound, range(begin, end), holders[begin:end].tolist(), blank[begin:end].tolist()))
        )
        if not sound:
            raise OllampiError(f"the accounting of {self.num_blocks} cache blocks is broken: {self.num_free} are free")
        return end == used

    def _is_sound(self, block: int, holders: int, blank: int) -> bool:
        """Return whether a block is held, blank or kept, just one of these, and found by its content.

        With the counts equal, what holds for every block leaves no room for others in any of the collections.
        """
        digest = self._digest(block)
        named = digest != _NO_DIGEST
        return (
            blank == (not holders and not named)
            and (block in self._kept) == (not holders and named)
            and (not named or self._with.get(digest) == block)
        )

    def _num_named(self) -> int:
        """Return how many blocks have a digest."""
        halves = np.frombuffer(bytes(self._digests), np.uint64)
        return int(np.count_nonzero(halves[::2] | halves[1::2]))

    def _digest(self, block: int) -> bytes:
        """Return the digest of a block that was used before, or _NO_DIGEST."""
        return bytes(self._digests[block * DIGEST_BYTES : (block + 1) * DIGEST_BYTES])

    def _set_digest(self, block: int, digest: bytes) -> None:
        """Note the digest of a block."""
        self._digests[block * DIGEST_BYTES : (block + 1) * DIGEST_BYTES] = digest

    def _take(self) -> int:
        """Return a free block: the lowest without content, or else the least recently used."""
        if self._blank:
            return heapq.heappop(self._blank)
        if len(self._holders) == self.num_blocks:
            return self._forget_oldest()
        self._holders.append(0)
        self._digests += _NO_DIGEST
        return len(self._holders) - 1

    def _forget_oldest(self) -> int:
        """Return the least recently used block that nobody holds; its content is lost."""
        block, _ = self._kept.popitem(last=False)
        self.forget([block])
        return block
