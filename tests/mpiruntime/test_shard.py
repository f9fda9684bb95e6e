"""Shards tile every dimension."""

from __future__ import annotations

import pytest

from ollampi.kernels.groups import GROUP
from ollampi.mpiruntime.errors import WorldError
from ollampi.mpiruntime.shard import Shard


@pytest.mark.parametrize("size", range(1, 10))
@pytest.mark.parametrize("count", [0, 1, 2, 7, 8, 31, 100, 768, 4096])
@pytest.mark.parametrize("unit", [1, 32])
def test_parts_tile_the_dimension_and_differ_by_one_unit(size: int, count: int, unit: int) -> None:
    parts = [Shard(rank, size).of(count, unit) for rank in range(size)]
    assert [i for part in parts for i in part] == list(range(count))
    lengths = [len(p) for p in parts]
    assert max(lengths) - min(lengths) <= (unit if count % unit == 0 and count // unit >= size else 1)


def test_cuts_fall_on_group_borders_where_groups_suffice() -> None:
    assert [Shard(r, 5).of(768, GROUP).start % GROUP for r in range(5)] == [0] * 5
    assert len(Shard(0, 5).of(96, GROUP)) == 96 // 5  # three groups cannot serve five ranks


@pytest.mark.parametrize(("heads", "kv_heads"), [(8, 8), (8, 2), (8, 1), (6, 3), (32, 8), (5, 5)])
def test_every_query_head_has_its_kv_head_on_its_rank(heads: int, kv_heads: int) -> None:
    group = heads // kv_heads
    for size in range(1, heads + 1):
        owned = [Shard(rank, size).heads(heads, kv_heads) for rank in range(size)]
        assert [h for mine, _ in owned for h in mine] == list(range(heads))
        for mine, kv in owned:
            assert {h // group for h in mine} == set(kv)


def test_more_ranks_than_heads_is_refused_with_the_remedy() -> None:
    with pytest.raises(WorldError, match="cannot cut 8 attention heads into 12 shards; use at most 8 ranks"):
        Shard(0, 12).heads(8, 2)
