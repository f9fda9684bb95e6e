"""Native attention over the cache's blocks gives what plain attention gives over each sequence's own keys."""

from __future__ import annotations

import random

import pytest
import torch
from support.arithmetic import threads
from torch import Tensor
from torch.testing import assert_close

from ollampi.kernels.attention import Scoring, attend
from ollampi.kernels.cache_codec import decode, encode
from ollampi.kernels.native import levels
from ollampi.kernels.ops import rms_norm_torch, rotate
from ollampi.kernels.paged_attention import HeadNorms, Kept, PagedAttention, Pieces, piece_tokens

LEVELS = pytest.mark.parametrize("level", levels())
KEPT = pytest.mark.parametrize("kept", [torch.float32, torch.bfloat16, torch.int8])
LAYERS, BLOCK = 2, 4


def empty(slots: int, kv_heads: int, size: int, kept: torch.dtype) -> Kept:
    """Return a cache whose vectors are not finite: nobody may look at what was not written."""
    shape = LAYERS, slots, kv_heads, size
    if kept != torch.int8:
        return Kept(torch.full(shape, torch.nan, dtype=kept))
    return Kept(torch.ones(shape, dtype=torch.int8), torch.full(shape[:-1], torch.nan, dtype=torch.bfloat16))


def rounded(x: Tensor, kept: torch.dtype) -> Tensor:
    """Return x [..., d] as the cache keeps it, in fp32."""
    return decode(*encode(x), torch.float32) if kept == torch.int8 else x.to(kept).float()


def write(cache: Kept, layer: int, slot: int, x: Tensor) -> None:
    """Keep x [K, d] in a slot."""
    if cache.scales is None:
        cache.vectors[layer, slot] = x.to(cache.vectors.dtype)
    else:
        cache.vectors[layer, slot], cache.scales[layer, slot] = encode(x)


class Scene:
    """Sequences with a past in the cache, and some new tokens of each."""

    def __init__(self, seed: int, heads: list[int], size: int, kept: torch.dtype, dtype: torch.dtype) -> None:
        rng = random.Random(seed)
        torch.manual_seed(seed)
        self.heads, self.size, self.kept = heads, size, kept  # heads: of each KV head, how many look at it
        self.num_heads, kv_heads = sum(heads), len(heads)
        starts = [rng.choice([0, 1, 3, 4, 31, 32, 33, 70]) for _ in range(rng.randint(1, 5))]
        counts = [rng.choice([1, 1, 2, 5, 40]) for _ in starts]
        free = list(range(200))
        rng.shuffle(free)
        self.keys, self.values = (empty(200 * BLOCK, kv_heads, size, kept) for _ in range(2))
        self.chunks, blocks, slots, self.past = [], [], [], []
        for start, count in zip(starts, counts, strict=True):
            own = [free.pop() for _ in range(-(-(start + count) // BLOCK))]
            past = torch.randn(2, start, kv_heads, size)
            at = [own[p // BLOCK] * BLOCK + p % BLOCK for p in range(start + count)]
            for p in range(start):
                write(self.keys, 1, at[p], past[0, p])
                write(self.values, 1, at[p], past[1, p])
            self.chunks.append((len(slots), count, start, len(blocks)))
            for p in range(start, start + count):
                slots.append(at[p])
                self.past.append((past, start, p - start))
            blocks += own
        self.scoring, self.norms, self.both_ways = Scoring(size**-0.5), None, False
        self.slots = torch.tensor(slots)
        self.blocks = torch.tensor(blocks)
        angles = torch.rand(len(slots), size // 2) * 6
        self.cos, self.sin = angles.cos(), angles.sin()
        self.qkv = torch.randn(len(slots), (self.num_heads + 2 * kv_heads) * size).to(dtype)

    def found(self, level: int) -> Tensor:
        """Return what the native library gives [T, H, d]; it changes a copy of qkv, which is kept."""
        first = torch.tensor([sum(self.heads[:k]) for k in range(len(self.heads) + 1)])
        most, each = piece_tokens(max(self.heads), level), []
        for token, count, start, at in self.chunks:
            for done in range(0, count, most):
                whole = start + count if self.both_ways else 0
                each.append((token + done, min(most, count - done), start + done, at, whole))
        pieces = Pieces(torch.tensor(each), self.blocks, 1000)
        angles = self.cos, self.sin
        paged = PagedAttention(self.keys, self.values, BLOCK, first, *angles, self.slots, pieces, self.scoring, level)
        self.changed = self.qkv.clone()
        return paged.mix(1, self.changed, self.norms).view(len(self.slots), self.num_heads, self.size)

    def wanted(self) -> Tensor:
        """Return the same by torch, token by token."""
        q, k, v = self.qkv.view(len(self.slots), -1, self.size).split([self.num_heads, *[len(self.heads)] * 2], dim=1)
        if self.norms is not None:
            q = rms_norm_torch(q, self.norms.queries, self.norms.eps).to(q.dtype)
            k = rms_norm_torch(k, self.norms.keys, self.norms.eps)
        q, k = rotate(q, self.cos, self.sin).float(), rotate(k.float(), self.cos, self.sin)
        of_head = torch.tensor([k for k, count in enumerate(self.heads) for _ in range(count)])
        out = []
        for token, (past, _, offset) in enumerate(self.past):
            end = next(t + count for t, count, _, _ in self.chunks if t <= token < t + count)
            own = slice(token - offset, end if self.both_ways else token + 1)
            keys = rounded(torch.cat([past[0], k[own]]), self.kept)
            values = rounded(torch.cat([past[1], v[own].float()]), self.kept)
            first = 0 if self.scoring.window is None else max(0, len(keys) - self.scoring.window)
            seen = keys[None, first:], values[None, first:]
            out.append(attend(q[token : token + 1], *seen, None, of_head, self.scoring))
        return torch.cat(out)


@LEVELS
@KEPT
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("heads", "size"), [([1], 2), ([4, 4], 64), ([1, 3, 2], 24), ([7], 80), ([1] * 5, 10), ([70], 6)]
)
def test_attention(level: int, kept: torch.dtype, dtype: torch.dtype, heads: list[int], size: int) -> None:
    for seed in range(4):
        scene = Scene(seed, heads, size, kept, dtype)
        assert_close(scene.found(level), scene.wanted(), rtol=1e-5, atol=3e-6 if kept != torch.int8 else 2e-4)


@LEVELS
@KEPT
@pytest.mark.parametrize(("heads", "size"), [([4, 4], 64), ([1, 3, 2], 24), ([12], 10), ([1], 18)])
@pytest.mark.parametrize(
    ("scoring", "both_ways"),
    [
        (Scoring(0.3), False),
        (Scoring(0.2, cap=3.0), False),
        (Scoring(0.2, window=1), False),
        (Scoring(0.2, window=7), False),
        (Scoring(0.2, 20.0, 40), False),
        (Scoring(0.2, 1.0), True),
    ],
)
def test_what_families_do_otherwise(
    level: int, kept: torch.dtype, heads: list[int], size: int, scoring: Scoring, both_ways: bool
) -> None:
    for seed in range(4):
        scene = Scene(seed, heads, size, kept, torch.float32)
        scene.scoring, scene.both_ways = scoring, both_ways
        turned = size // 2 - seed  # pairs of a head
        scene.cos, scene.sin = (x[:, :turned].contiguous() for x in (scene.cos, scene.sin))
        if seed % 2:
            scene.norms = HeadNorms(torch.randn(size), torch.randn(size), 1e-6)
        assert_close(scene.found(level), scene.wanted(), rtol=1e-5, atol=1e-5 if kept != torch.int8 else 2e-3)


@LEVELS
@KEPT
def test_new_keys_and_values_are_kept_and_queries_turned(level: int, kept: torch.dtype) -> None:
    scene = Scene(3, [2, 2], 24, kept, torch.float32)
    scene.found(level)
    q, k, v = scene.qkv.view(len(scene.slots), -1, 24).split([4, 2, 2], dim=1)
    assert_close(scene.changed.view(len(scene.slots), -1, 24)[:, :4], rotate(q, scene.cos, scene.sin))
    for cache, x in ((scene.keys, rotate(k, scene.cos, scene.sin)), (scene.values, v)):
        found = cache.vectors[1, scene.slots]
        if cache.scales is not None:
            found = decode(found, cache.scales[1, scene.slots], torch.float32)
        step = {torch.float32: 1e-6, torch.bfloat16: 2**-7, torch.int8: 0.03}[
            kept
        ]  # where rounding falls the other way
        assert ((found.float() - rounded(x, kept)).abs() <= step * x.abs().amax(-1, keepdim=True)).all()


@LEVELS
@KEPT
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_shows_in_its_own_sequence_alone(level: int, kept: torch.dtype, bad: float) -> None:
    scene = Scene(5, [2, 2], 24, kept, torch.float32)
    first, count = scene.chunks[-1][:2]
    scene.qkv[first + count - 1, -24] = bad  # a value of the last KV head
    found = scene.found(level)
    assert not found[first + count - 1, 2:, 0].isfinite().any()
    assert found[:first].isfinite().all()


@LEVELS
def test_scores_beyond_the_range_of_exp(level: int) -> None:
    scene = Scene(2, [2], 8, torch.float32, torch.float32)
    scene.qkv *= 1000
    assert_close(scene.found(level), scene.wanted(), rtol=1e-4, atol=1e-2)


@pytest.mark.skipif(not levels(), reason="the native kernels were not built")
@KEPT
def test_threads_change_nothing(kept: torch.dtype) -> None:
    found = []
    for count in (1, 3):
        with threads(count):
            found.append(Scene(7, [2, 2, 1], 16, kept, torch.float32).found(levels()[-1]))
    assert torch.equal(*found)
