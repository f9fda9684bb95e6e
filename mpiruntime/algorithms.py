"""Add up vectors of all ranks over a link, in the codes of any level: three ways, for messages of different sizes.

    one_step   everybody sends its codes to all others and adds up all of them: one trip, (N-1) b sent
    doubling   neighbours at distances 1, 2, 4 ... swap the codes of what they have so far: log2 N trips, b log2 N sent;
               ranks beyond the greatest power of two hand theirs to another rank first and get the sum at last
    scattered  everybody adds up one share of the vector, then all get its codes: two trips, 2 b (N-1)/N sent

b: the bytes of the vector's codes. A sum has the same bits on every rank: all decode the same codes, their own too, and
add them in the same order. In level 0 it is the fp32 sum in rank order, but doubling adds sums of neighbours.
All ranks pass the same level and length, and make the same calls in the same order.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from ollampi.kernels.codec import Codec, num_bytes
from ollampi.kernels.groups import GROUP
from ollampi.mpiruntime.link import Link
from ollampi.mpiruntime.shard import Shard

_WHAT = "all_reduce"
_LINE_BYTES = 64
_KEPT = 64  # cuts of a room; a model has few sizes of steps at a time


class Room:
    """Memory for codes that is used again by every call; for one call at a time."""

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8)
        self._cuts: dict[tuple[int, ...], list[Tensor]] = {}

    def parts(self, *sizes: int) -> list[Tensor]:
        """Return buffers, uint8 [size] each, at the beginnings of cache lines; those of the last call lose theirs."""
        if sizes not in self._cuts:
            starts, total = [], 0
            for size in sizes:
                starts.append(total)
                total += -(-size // _LINE_BYTES) * _LINE_BYTES
            if total > len(self._memory) or len(self._cuts) >= _KEPT:
                self._cuts.clear()
            with torch.inference_mode(False):  # such memory may be written in either mode
                if total > len(self._memory):
                    self._memory = torch.empty(total, dtype=torch.uint8)
                self._cuts[sizes] = [self._memory[a : a + size] for a, size in zip(starts, sizes, strict=True)]
        return self._cuts[sizes]


Algorithm = Callable[[Link, Codec, Tensor, Room], Tensor]


def one_step(link: Link, codec: Codec, x: Tensor, room: Room) -> Tensor:
    """Return the sum [n] of x [n] in fp32 over all ranks, each of which sends its codes to all others; collective."""
    total = torch.empty_like(x)
    if not len(x):
        return total
    parts = list(room.parts(*[num_bytes(codec.level, len(x))] * link.size))
    parts[link.rank] = own = _encoded(codec, x, parts[link.rank])
    others = [r for r in range(link.size) if r != link.rank]
    link.swap([(r, own) for r in others], [(r, parts[r]) for r in others], _WHAT)
    codec.decode_sum(parts, total)
    return total


def doubling(link: Link, codec: Codec, x: Tensor, room: Room) -> Tensor:
    """Return the sum [n] of x [n] in fp32 over all ranks, which swap partial sums at growing distances; collective."""
    total = torch.empty_like(x)
    if not len(x):
        return total
    paired = 1 << (link.size.bit_length() - 1)
    own, other = room.parts(*[num_bytes(codec.level, len(x))] * 2)
    held = [total.view(torch.uint8)] if codec.level == 0 else [own, other]  # what makes the sum on ranks beyond
    if link.rank >= paired:
        link.swap([(link.rank - paired, _encoded(codec, x, own))], [], _WHAT)
        for _ in range(paired.bit_length() - 1):
            link.swap([], [], _WHAT)
        link.swap([], [(link.rank - paired, part) for part in held], _WHAT)
        if codec.level:
            codec.decode_sum(held, total)
        return total
    beyond = [link.rank + paired] if link.rank + paired < link.size else []
    codec.encode(x, own)
    if link.size > paired:
        link.swap([], [(r, other) for r in beyond], _WHAT)
    pair = [own, *([other] if beyond else [])]
    for distance in (1 << i for i in range(paired.bit_length() - 1)):
        if len(pair) > 1:
            codec.recode(pair, own)
        partner = link.rank ^ distance
        link.swap([(partner, own)], [(partner, other)], _WHAT)
        pair = [own, other] if link.rank < partner else [other, own]
    codec.decode_sum(pair, total)
    if link.size > paired:
        link.swap([(r, part) for r in beyond for part in (held if codec.level == 0 else pair)], [], _WHAT)
    return total


def scattered(link: Link, codec: Codec, x: Tensor, room: Room) -> Tensor:
    """Return the sum [n] of x [n] in fp32 over all ranks, each of which adds up a share of groups; collective."""
    total = torch.empty_like(x)
    if not len(x):
        return total
    shares = _shares(len(x), link.size)
    others = [r for r in range(link.size) if r != link.rank and shares[r]]
    sizes = [num_bytes(codec.level, len(share)) for share in shares]
    slots = room.parts(*sizes, *[sizes[link.rank]] * link.size)
    given, parts = slots[: link.size], slots[link.size :]
    for r, share in enumerate(shares):
        given[r] = _encoded(codec, x[share.start : share.stop], given[r])
    parts[link.rank] = given[link.rank]
    senders = [r for r in range(link.size) if r != link.rank and shares[link.rank]]
    link.swap([(r, given[r]) for r in others], [(r, parts[r]) for r in senders], _WHAT)
    sums = given if codec.level else [_bytes(total[share.start : share.stop]) for share in shares]
    if shares[link.rank]:
        codec.recode(parts, sums[link.rank])
    link.swap([(r, sums[link.rank]) for r in senders], [(r, sums[r]) for r in others], _WHAT)
    for r, share in enumerate(shares):
        if codec.level and share:
            codec.decode_sum([sums[r]], total[share.start : share.stop])
    return total


ALGORITHMS: dict[str, Algorithm] = {"one_step": one_step, "doubling": doubling, "scattered": scattered}


def _encoded(codec: Codec, x: Tensor, codes: Tensor) -> Tensor:
    """Return the codes of x [n], in `codes` unless they are x itself; uint8 [bytes]."""
    if codec.level == 0:
        return _bytes(x)
    if len(x):
        codec.encode(x, codes)
    return codes


def _bytes(x: Tensor) -> Tensor:
    """Return x [n] in fp32 as its bytes, uint8 [4 n]."""
    return x.view(torch.uint8)


@lru_cache(maxsize=256)
def _shares(count: int, size: int) -> list[range]:
    """Return which numbers of `count` each of `size` ranks adds up: whole groups, but for the last one."""
    groups = [shard.of(-(-count // GROUP)) for shard in Shard(0, size).others()]
    return [range(part.start * GROUP, min(part.stop * GROUP, count)) for part in groups]
