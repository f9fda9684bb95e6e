"""The cache keeps what it was given in the type it was told, and takes memory as it is written."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from support.checkpoints import FAMILIES, write_checkpoint

from ollampi.kernels.cache_codec import decode, encode
from ollampi.mpiruntime.kv_cache import KVCache
from ollampi.mpiruntime.memory import cache_bytes
from ollampi.mpiruntime.model_config import read_config
from ollampi.mpiruntime.shard import Shard

KEPT = ("float32", "bfloat16", "int8")
TYPES = (torch.float32, torch.bfloat16)


def kept_as(x: torch.Tensor, kept: str) -> torch.Tensor:
    """Return x as a cache that keeps `kept` gives it back."""
    return decode(*encode(x), x.dtype) if kept == "int8" else x.to(getattr(torch, kept)).to(x.dtype)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("kept", KEPT)
def test_what_is_written_is_read_rounded_once_in_any_order(kept: str, dtype: torch.dtype) -> None:
    cache = KVCache(3, 10, 4, 2, 24, dtype, kept)
    k, v = torch.randn(2, 3, 40, 2, 24).to(dtype)
    places = torch.randperm(40)
    for layer in range(3):
        for slots in places.split(7):
            cache.write(layer, slots, k[layer, slots], v[layer, slots])
    some = torch.randint(40, (2 * 9,))
    for layer in range(3):
        for slots, count in ((slice(4, 31), 1), (some, 2)):
            keys, values = cache.read(layer, slots, count)
            assert keys.dtype == values.dtype == dtype
            assert keys.shape == (count, len(k[layer, slots]) // count, 2, 24)
            assert torch.equal(keys, kept_as(k[layer, slots], kept).view(keys.shape))
            assert torch.equal(values, kept_as(v[layer, slots], kept).view(values.shape))


@pytest.mark.parametrize("dtype", TYPES)
def test_neighbours_in_the_models_own_type_are_read_in_place(dtype: torch.dtype) -> None:
    cache = KVCache(2, 10, 4, 2, 24, dtype, str(dtype).removeprefix("torch."))
    k = torch.randn(4, 2, 24).to(dtype)
    cache.write(1, torch.arange(4), k, k)
    keys, _ = cache.read(1, slice(0, 4), 1)
    cache.write(1, torch.tensor([2]), 5 * k[:1], k[:1])
    assert torch.equal(keys[0, 2], 5 * k[0])


@pytest.mark.parametrize("kept", KEPT)
def test_what_was_not_written_reads_as_zeros(kept: str) -> None:
    keys, values = KVCache(2, 10, 4, 2, 24, torch.bfloat16, kept).read(1, slice(0, 40), 1)
    assert not keys.any()
    assert not values.any()


@pytest.mark.parametrize("kept", KEPT)
def test_the_bytes_are_those_that_were_counted_before(kept: str, tmp_path: Path) -> None:
    for name, changes in FAMILIES.items():
        config = read_config(write_checkpoint(tmp_path / name, **changes))
        for size in (1, 2, 3, 8):
            for rank in range(size):
                shard = Shard(rank, size)
                _, kv_heads = shard.heads(config.num_heads, config.num_kv_heads)
                sizes = (config.num_layers, 5, 16, len(kv_heads), config.head_dim)
                assert KVCache(*sizes, torch.float32, kept).size_bytes == cache_bytes(config, shard, 80, kept)


def test_what_is_taken_follows_the_highest_slot_that_was_written() -> None:
    cache = KVCache(2, 10, 4, 2, 24, torch.float32, "int8")
    assert cache.size_bytes == 2 * 2 * 40 * 2 * (24 + 2)
    for slots, reached in (([], 0), ([3, 9, 4], 10), ([2], 10), ([39], 40)):
        if slots:
            cache.note(torch.tensor(slots))
        assert cache.taken_bytes == cache.size_bytes * reached // 40


def resident_bytes(cache: KVCache) -> int:
    """Return the bytes of a cache's pages that are in memory, as the kernel lists them."""
    page, found = os.sysconf("SC_PAGE_SIZE"), 0
    with open("/proc/self/pagemap", "rb") as pagemap:
        for tensor in (t for side in (cache.keys, cache.values) for t in vars(side).values() if torch.is_tensor(t)):
            pagemap.seek(tensor.data_ptr() // page * 8)
            entries = np.frombuffer(pagemap.read(-(-tensor.nbytes // page) * 8), np.uint64)
            found += int((entries >> 63).sum()) * page  # the highest bit says that the page is there
    return found


@pytest.mark.parametrize("kept", KEPT)
def test_memory_is_taken_when_it_is_used(kept: str) -> None:
    cache = KVCache(8, 4096, 16, 4, 64, torch.float32, kept)
    assert cache.size_bytes >= 256 << 20
    assert resident_bytes(cache) == 0
    x = torch.randn(1024, 4, 64)
    for slots in torch.arange(16384).split(1024):
        cache.note(slots)
        for layer in range(8):
            cache.write(layer, slots, x, x)
    assert cache.taken_bytes == cache.size_bytes // 4
    huge_pages = 32 * (2 << 20)  # at the end of what is written in each layer, where the kernel uses them
    assert cache.taken_bytes <= resident_bytes(cache) <= cache.taken_bytes + huge_pages
