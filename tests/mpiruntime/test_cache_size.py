"""The cache gets what the host with the least memory leaves."""

from __future__ import annotations

import random

import pytest

from ollampi.mpiruntime.cache_size import RankMemory, Room, room
from ollampi.mpiruntime.errors import MemoryShortError, ModelError

GIB = 1 << 30


def rank(
    host: str = "a", fixed: int = 0, block: int = 1, free: int = 0, promised: int = 0, freed: int = 0
) -> RankMemory:
    return RankMemory(host, [fixed], block, free, promised, freed)


@pytest.mark.parametrize(
    ("ranks", "blocks"),
    [
        ([rank(free=100)], 50),
        ([rank(free=100, fixed=40)], 30),
        ([rank(free=100, fixed=40, block=7)], 4),
        ([rank(free=100, fixed=40, promised=20)], 20),
        ([rank(free=100, fixed=40, freed=20)], 40),
        ([rank(free=100, fixed=20)] * 2, 15),  # the memory of a host is there once for all its ranks
        ([rank(free=100, fixed=20), rank(free=90, fixed=20)], 12),  # what was free when the last one looked
        ([rank(free=100, block=1), rank(free=100, block=3)], 12),  # a rank with more KV heads
        ([rank("a", free=100), rank("b", free=60)], 30),
        ([rank("a", free=100), rank("b", free=100), rank("a", free=100)], 25),
        ([rank("a", free=100, fixed=90), rank("b", free=1000)], 5),
        ([rank(free=10_000)], 1000),  # more would be of no use
        ([rank(free=100, fixed=94)], 4),  # less would be of no use: the fraction gives way
        ([rank(free=100, fixed=96)], 4),
    ],
)
def test_blocks_follow_from_the_memory(ranks: list[RankMemory], blocks: int) -> None:
    assert room(ranks, 4, 1000, 0.5, "m") == Room(blocks)


@pytest.mark.parametrize(
    ("ranks", "texts"),
    [
        ([rank(free=8 * GIB, fixed=8 * GIB)], ["needs 8 GiB on host a (1 shard) but 8 GiB are free"]),
        ([rank(free=8 * GIB, fixed=5 * GIB)] * 2, ["needs 10 GiB on host a (2 shards) but 8 GiB are free"]),
        ([rank("a", free=GIB), rank("b", free=GIB, fixed=2 * GIB)], ["needs 2 GiB on host b (1 shard) but 1 GiB are"]),
        ([rank(free=GIB, promised=2 * GIB)], ["but 0 B are free"]),
    ],
)
def test_a_host_that_cannot_have_one_context_is_named_with_the_remedies(
    ranks: list[RankMemory], texts: list[str]
) -> None:
    with pytest.raises(ModelError) as caught:
        room(ranks, 4, 1000, 0.5, "m in bfloat16")
    message = str(caught.value)
    for text in ["m in bfloat16 needs", "smaller engine.cache_tokens", "engine.cache_dtype=int8", *texts]:
        assert text in message


@pytest.mark.parametrize("seed", range(50))
def test_no_host_gives_more_than_its_part_and_one_more_block_would_be_too_many(seed: int) -> None:
    draw = random.Random(seed)
    ranks = [
        rank(draw.choice("abc"), draw.randint(0, 50), draw.randint(1, 9), draw.randint(500, 900), draw.randint(0, 9))
        for _ in range(draw.randint(1, 8))
    ]
    least, most, fraction = draw.randint(0, 3), draw.randint(3, 500), draw.choice([0.1, 0.5, 1.0])
    blocks = room(ranks, least, most, fraction, "m").num_blocks
    assert least <= blocks <= most

    def fits(count: int) -> bool:
        for host in "abc":
            local = [r for r in ranks if r.host == host]
            left = min((r.free_bytes for r in local), default=0) - sum(
                r.fixed_bytes[0] + r.promised_bytes for r in local
            )
            if count * sum(r.block_bytes for r in local) > max(0, left) * fraction:
                return False
        return True

    assert fits(blocks) or blocks == least
    assert not fits(blocks + 1) or blocks == most


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([[40, 30, 20]], Room(30)),  # nothing is streamed where all fits
        ([[98, 80, 60]], Room(10, 1)),
        ([[98, 97, 60], [0, 0, 0]], Room(10, 2)),
        ([[60, 50, 20], [60, 50, 20]], Room(15, 2)),  # of the same host
        ([[98, 80, 60], [0]], None),  # one rank cannot stream
        ([[98, 97, 97]], None),
    ],
)
def test_as_few_layers_are_streamed_as_the_memory_allows(sizes: list[list[int]], expected: Room | None) -> None:
    ranks = [RankMemory("a", fixed, 1, 100, 0, 0) for fixed in sizes]
    if expected is not None:
        assert room(ranks, 4, 1000, 0.5, "m") == expected
        return
    with pytest.raises(ModelError, match=r"engine\.context_length; or a wish$"):
        room(ranks, 4, 1000, 0.5, "m", "; or a wish")


def test_all_layers_are_streamed_where_that_is_wanted() -> None:
    ranks = [RankMemory(host, [40, 30, 20], 1, 100, 0, 0) for host in "ab"]
    assert room(ranks, 4, 1000, 0.5, "m", always=True) == Room(40, 2)


def test_the_limits_of_a_process_count_beside_the_memory_of_its_host() -> None:
    def limited(own: int | None) -> RankMemory:
        return RankMemory("a", [40], 1, 1000, 10, 0, own_bytes=own)

    assert room([limited(None)] * 2, 4, 1000, 0.5, "m") == Room((1000 - 100) // 4)
    assert room([limited(100), limited(None)], 4, 1000, 0.5, "m") == Room(30)  # a cache not yet written to counts there
    assert room([limited(100), limited(44)], 4, 1000, 0.5, "m") == Room(4)
    with pytest.raises(MemoryShortError, match=r"needs 44 B on host a within ulimit \(1 shard\) but 43 B are free, wh"):
        room([limited(100), limited(43)], 4, 1000, 0.5, "m", block_size=16)
