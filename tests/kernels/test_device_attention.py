"""Attention as a GPU computes it gives what plain attention gives; its kernels are emulated on the CPU."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from support.emulated import Emulated
from torch import Tensor
from torch.testing import assert_close

from ollampi.kernels import device_attention
from ollampi.kernels.attention import Scoring, attend
from ollampi.kernels.cache_codec import decode
from ollampi.kernels.device_attention import LayerCache, OnHeads, Rows, Turning, look, look_together, turn_and_keep
from ollampi.kernels.paged_attention import HeadNorms, Kept

KEPT = pytest.mark.parametrize("kept", [torch.float32, torch.bfloat16, torch.int8])
HEADS = pytest.mark.parametrize(("heads", "size"), [([4, 4], 64), ([1, 3, 2], 24), ([11], 80), ([1], 256), ([2], 130)])
BLOCK, BLOCKS = 4, 60


def on_heads(heads: list[int]) -> OnHeads:
    """Return which query heads look at which KV head; heads: of each KV head, how many do."""
    first = torch.tensor([sum(heads[:k]) for k in range(len(heads) + 1)], dtype=torch.int32)
    of_head = torch.tensor([k for k, count in enumerate(heads) for _ in range(count)])
    return OnHeads(first, None if len(set(heads)) == 1 else of_head, sum(heads), max(heads))


def empty(kv_heads: int, size: int, kept: torch.dtype) -> LayerCache:
    """Return a cache whose vectors are not finite: nobody may look at what was not written."""
    shape = BLOCKS * BLOCK, kv_heads, size

    def one() -> Kept:
        if kept != torch.int8:
            return Kept(torch.full(shape, torch.nan, dtype=kept))
        return Kept(torch.ones(shape, dtype=torch.int8), torch.full(shape[:-1], torch.nan, dtype=torch.bfloat16))

    return LayerCache(one(), one(), BLOCK)


def read(kept: Kept, slots: Tensor) -> Tensor:
    """Return the vectors [S, K, d] of slots in fp32."""
    if kept.scales is None:
        return kept.vectors[slots].float()
    return decode(kept.vectors[slots], kept.scales[slots], torch.float32)


class Scene:
    """Sequences in the cache over blocks that are no neighbours, and the queries of their last tokens."""

    def __init__(self, heads: list[int], size: int, kept: torch.dtype, lengths: list[int]) -> None:
        self.heads, self.lengths = on_heads(heads), lengths
        self.cache = empty(len(heads), size, kept)
        free = list(range(BLOCKS))
        random.Random(1).shuffle(free)
        torch.manual_seed(1)
        self.blocks = [[free.pop() for _ in range(-(-length // BLOCK))] for length in lengths]
        for blocks, length in zip(self.blocks, lengths, strict=True):
            turning = Turning(torch.ones(length, 1), torch.zeros(length, 1), self.slots(blocks, length))
            qkv = torch.randn(length, (sum(heads) + 2 * len(heads)) * size)
            turn_and_keep(qkv, None, turning, self.cache, self.heads, None)
        self.q = torch.randn(len(lengths), sum(heads), size)

    @staticmethod
    def slots(blocks: list[int], length: int) -> Tensor:
        """Return the slots of a sequence's positions."""
        return torch.tensor([blocks[p // BLOCK] * BLOCK + p % BLOCK for p in range(length)])

    def rows(self) -> Rows:
        """Return the tokens; their tables are as long as that of a longer sequence."""
        width = max(map(len, self.blocks)) + 3
        tables = torch.tensor([b + [0] * (width - len(b)) for b in self.blocks], dtype=torch.int32)
        return Rows(tables, torch.tensor(self.lengths, dtype=torch.int32), max(self.lengths))

    def wanted(self, scoring: Scoring) -> Tensor:
        """Return the mix by plain attention, token by token."""
        of_head = self.heads.kv_of_head
        out = []
        for token, (blocks, length) in enumerate(zip(self.blocks, self.lengths, strict=True)):
            first = max(0, length - (scoring.window or length))
            slots = self.slots(blocks, length)[first:]
            seen = (read(kept, slots)[None] for kept in (self.cache.keys, self.cache.values))
            out.append(attend(self.q[token : token + 1], *seen, None, of_head, replace(scoring, window=None)))
        return torch.cat(out)


@KEPT
@HEADS
@pytest.mark.parametrize(
    "scoring", [Scoring(0.2), Scoring(0.2, cap=3.0), Scoring(0.2, window=1), Scoring(0.3, 9.0, 7)], ids=str
)
def test_tokens_look_at_the_blocks(
    kept: torch.dtype, heads: list[int], size: int, scoring: Scoring, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_attention, "_LEAST_POSITIONS", 5)
    for lengths in ([1], [3, 1, 70, 16], [9] * 5):
        scene, kernels = Scene(heads, size, kept, lengths), Emulated()
        wanted = scene.wanted(scoring)
        found = look(scene.q, scene.rows(), scene.cache, scene.heads, scoring, kernels)
        assert kernels.launched == ["look", "join"]
        assert_close(found, wanted, rtol=1e-5, atol=1e-5)
        by_torch = look(scene.q, scene.rows(), scene.cache, scene.heads, scoring, None)
        assert_close(by_torch, wanted, rtol=1e-5, atol=1e-5)


@KEPT
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_stays_visible_and_with_its_own_sequence(kept: torch.dtype, bad: float) -> None:
    scene = Scene([2, 2], 32, kept, [5, 7])
    slots = scene.slots(scene.blocks[0], 5)
    qkv = torch.full((5, 8 * 32), bad)
    turn_and_keep(qkv, None, Turning(torch.ones(5, 1), torch.zeros(5, 1), slots), scene.cache, scene.heads, None)
    for kernels in (Emulated(), None):
        found = look(scene.q, scene.rows(), scene.cache, scene.heads, Scoring(0.2), kernels)
        assert found[0].isnan().all()
        assert found[1].isfinite().all()


@KEPT
@HEADS
@pytest.mark.parametrize("normed", [False, True])
def test_heads_are_turned_and_kept_as_torch_does(kept: torch.dtype, heads: list[int], size: int, normed: bool) -> None:
    torch.manual_seed(2)
    count, half = 5, size // 2 - size // 8
    norms = HeadNorms(torch.rand(size) + 0.5, torch.rand(size) + 0.5, 1e-6) if normed else None
    qkv = torch.randn(count, (sum(heads) + 2 * len(heads)) * size)
    qkv[2] = 0
    angles = torch.rand(count, half)
    turning = Turning(angles.cos(), angles.sin(), torch.tensor([3, 17, 9, 100, 41]))
    caches = [empty(len(heads), size, kept) for _ in range(2)]
    queries = [
        turn_and_keep(qkv.clone(), norms, turning, cache, on_heads(heads), kernels)
        for cache, kernels in zip(caches, (Emulated(), None), strict=True)
    ]
    assert_close(*queries, rtol=1e-5, atol=1e-6)
    for own, other in ((caches[0].keys, caches[1].keys), (caches[0].values, caches[1].values)):
        found, wanted = read(own, turning.slots), read(other, turning.slots)
        exact = other is caches[1].values  # what is turned may round otherwise
        assert (
            torch.equal(found, wanted)
            if exact
            else (found - wanted).abs().max() <= (0.03 if kept != torch.float32 else 1e-5)
        )
        assert own.vectors.float().isnan().sum() == other.vectors.float().isnan().sum()


def test_vectors_that_are_not_finite_are_kept_as_nan_in_8_bits() -> None:
    for bad in (torch.nan, torch.inf, -torch.inf):
        cache, heads = empty(1, 8, torch.int8), on_heads([1])
        qkv = torch.ones(1, 24)
        qkv[0, 11], qkv[0, 20] = bad, bad
        turning = Turning(torch.ones(1, 1), torch.zeros(1, 1), torch.tensor([6]))
        turn_and_keep(qkv, None, turning, cache, heads, Emulated())
        assert read(cache.keys, turning.slots).isnan().all()
        assert read(cache.values, turning.slots).isnan().all()


@KEPT
@pytest.mark.parametrize(("heads", "size"), [([4, 4], 64), ([1, 3, 2], 24)])
@pytest.mark.parametrize("both_ways", [False, True])
@pytest.mark.parametrize("scoring", [Scoring(0.2), Scoring(0.2, cap=3.0), Scoring(0.2, window=3)], ids=str)
def test_a_prompt_looks_together_as_its_tokens_do_alone(
    kept: torch.dtype, heads: list[int], size: int, both_ways: bool, scoring: Scoring
) -> None:
    length, count = 21, 9
    scene = Scene(heads, size, kept, [length])
    slots, q = scene.slots(scene.blocks[0], length), torch.randn(count, sum(heads), size)
    found = look_together(q, slots, both_ways, scene.cache, scene.heads, scoring, torch.float32)
    wanted = []
    for token in range(count):
        scene.q, end = q[token : token + 1], length if both_ways else length - count + token + 1
        scene.lengths = [end]
        wanted.append(scene.wanted(scoring))
    assert_close(found, torch.cat(wanted), rtol=1e-4, atol=1e-5)
