"""Attention on a GPU: tokens look at the blocks of the cache one by one, or whole prompts at copies of theirs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from ollampi.kernels.attention import Scoring, attend
from ollampi.kernels.cache_codec import decode, encode
from ollampi.kernels.cuda_module import Argument, Kernels
from ollampi.kernels.ops import rms_norm_torch, rotate
from ollampi.kernels.paged_attention import HeadNorms, Kept

_KEPT = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}
_WARPS = 4  # in a block, as in kernels/cuda/attention.cu
_MOST_HEADS = 8  # of one KV head that a block serves; more would not fit into its registers
_WIDEST = 256  # heads beyond are torch's work, likewise
_BLOCKS = 512  # of threads that keep a large GPU busy: that many parts are made of what the tokens see
_LEAST_POSITIONS = 64  # of such a part, where there are so many


@dataclass(frozen=True)
class Rows:
    """Tokens that look on their own, at the first `seen` positions of a sequence.

    tables: int32 [R, M], the blocks of each token's sequence; seen: int32 [R]; longest: no less than any of seen.
    """

    tables: Tensor
    seen: Tensor
    longest: int


@dataclass(frozen=True)
class OnHeads:
    """Which query heads look at which KV head: first_heads int32 [K + 1], and each KV head's number of them at most."""

    first_heads: Tensor
    kv_of_head: Tensor | None
    num_heads: int
    most: int


@dataclass(frozen=True)
class Turning:
    """How heads are normed and turned, and where keys and values go: cos, sin fp32 [T, r/2], slots int64 [T]."""

    cos: Tensor
    sin: Tensor
    slots: Tensor


@dataclass(frozen=True)
class LayerCache:
    """Keys and values of one layer: vectors [slots, K, d] with scales [slots, K] where they are int8."""

    keys: Kept
    values: Kept
    block_size: int

    @cached_property
    def shape(self) -> tuple[int, int]:
        """Return the KV heads and the width of one."""
        return self.keys.vectors.shape[1], self.keys.vectors.shape[2]


def turn_and_keep(
    qkv: Tensor, norms: HeadNorms | None, turning: Turning, cache: LayerCache, heads: OnHeads, kernels: Kernels | None
) -> Tensor:
    """Return the queries [T, H, d] in fp32, normed and turned; turned keys, and values, go to the cache.

    qkv [T, (H + 2K) d] in fp32 or bf16, maybe changed.
    """
    num_kv_heads, head_dim = cache.shape
    if kernels is None or head_dim > 2 * _WIDEST:
        return _turn_and_keep_torch(qkv, norms, turning, cache, heads)
    qkv = qkv.float().contiguous()
    norm: list[Argument] = [None, None] if norms is None else [norms.queries, norms.keys]
    held = [cache.keys.vectors, cache.keys.scales, cache.values.vectors, cache.values.scales]
    sizes = [heads.num_heads, num_kv_heads, head_dim, turning.cos.shape[1], 0.0 if norms is None else norms.eps]
    kernel = kernels.get("layer.cu", "turn_and_keep", KEPT=_KEPT[cache.keys.vectors.dtype])
    angles = [turning.cos.contiguous(), turning.sin.contiguous(), turning.slots]
    kernel((heads.num_heads + 2 * num_kv_heads, len(qkv), 1), 32, [qkv, *angles, *norm, *held, *sizes])
    return qkv.view(len(qkv), -1, head_dim)[:, : heads.num_heads]


def _turn_and_keep_torch(
    qkv: Tensor, norms: HeadNorms | None, turning: Turning, cache: LayerCache, heads: OnHeads
) -> Tensor:
    """Return what `turn_and_keep` does, by torch; it defines the kernel."""
    num_kv_heads, head_dim = cache.shape
    whole = qkv.float().view(len(qkv), -1, head_dim)
    q, k, v = torch.split(whole, [heads.num_heads, num_kv_heads, num_kv_heads], dim=1)
    if norms is not None:
        q, k = rms_norm_torch(q, norms.queries, norms.eps), rms_norm_torch(k, norms.keys, norms.eps)
    for kept, x in ((cache.keys, rotate(k, turning.cos, turning.sin)), (cache.values, v)):
        if kept.scales is None:
            kept.vectors.index_copy_(0, turning.slots, x.to(kept.vectors.dtype))
        else:
            codes, scales = encode(x)
            kept.vectors.index_copy_(0, turning.slots, codes)
            kept.scales.index_copy_(0, turning.slots, scales)
    return rotate(q, turning.cos, turning.sin)


def look(q: Tensor, rows: Rows, cache: LayerCache, heads: OnHeads, scoring: Scoring, kernels: Kernels | None) -> Tensor:
    """Return the mix [R, H, d] in fp32 of what each token sees; q [R, H, d] in fp32, its last two dimensions dense."""
    num_kv_heads, head_dim = cache.shape
    if kernels is None or head_dim > _WIDEST or head_dim % 2:
        return look_torch(q, rows, cache, heads, scoring)
    group = min(_MOST_HEADS, 1 << (heads.most - 1).bit_length())
    blocks = num_kv_heads * -(-heads.most // group)
    parts = max(1, min(-(-_BLOCKS // (blocks * len(q))), -(-rows.longest // _LEAST_POSITIONS)))
    mixed = torch.empty(len(q), parts, heads.num_heads, head_dim, device=q.device)
    tops, sums = torch.empty(2, len(q), parts, heads.num_heads, device=q.device)
    out = torch.empty(len(q), heads.num_heads, head_dim, device=q.device)
    kernel = kernels.get(
        "attention.cu",
        "look",
        KEPT=_KEPT[cache.keys.vectors.dtype],
        PAIRS=-(-head_dim // 64),
        GROUP=group,
    )
    held = [cache.keys.vectors, cache.keys.scales, cache.values.vectors, cache.values.scales]
    sizes = [heads.num_heads, num_kv_heads, head_dim, cache.block_size, rows.tables.shape[1], scoring.window or 0]
    where = [rows.tables, rows.seen, heads.first_heads, mixed, tops, sums]
    arguments = [q, q.stride(0), *held, *where, *sizes, scoring.scale, scoring.cap or 0.0]
    kernel((blocks, len(q), parts), 32 * _WARPS, arguments)
    join = kernels.get("attention.cu", "join", KEPT=0, PAIRS=1, GROUP=1)
    join((heads.num_heads, len(q), 1), min(256, -(-head_dim // 32) * 32), [mixed, tops, sums, out, parts, *sizes[:3:2]])
    return out


def look_torch(q: Tensor, rows: Rows, cache: LayerCache, heads: OnHeads, scoring: Scoring) -> Tensor:
    """Return the same as `look` [R, H, d], by torch; of one shape whatever the tokens see, as a captured step needs.

    What is not seen is read from the token's own first slot, which is sound memory, and weighs nothing.
    """
    positions = torch.arange(rows.tables.shape[1] * cache.block_size, device=q.device)
    seen = rows.seen[:, None].long()
    visible = positions < seen
    if scoring.window is not None:
        visible &= positions >= seen - scoring.window
    shown = torch.where(positions < seen, positions, 0)
    slots = rows.tables.long().gather(1, shown // cache.block_size) * cache.block_size + shown % cache.block_size
    keys, values = (_taken(kept, slots.flatten(), torch.float32) for kept in (cache.keys, cache.values))
    shape = len(q), -1, *cache.shape
    mask = visible[:, None, None]
    return attend(q.contiguous(), keys.view(shape), values.view(shape), mask, heads.kv_of_head, scoring)


def look_together(
    q: Tensor, slots: Tensor, both_ways: bool, cache: LayerCache, heads: OnHeads, scoring: Scoring, dtype: torch.dtype
) -> Tensor:
    """Return the mix [T, H, d] in fp32 for the last T of S positions of one sequence, q [T, H, d], slots int64 [S].

    both_ways: tokens see those behind them too; dtype: what it is computed in.
    """
    keys, values = (_taken(kept, slots, dtype) for kept in (cache.keys, cache.values))
    q = q.to(dtype)
    plain = scoring.cap is None and (scoring.window is None or scoring.window >= len(slots))
    if not plain:
        mask = _mask(len(q), len(slots), None if both_ways else 0, scoring.window, q.device)
        return attend(q.contiguous(), keys[None], values[None], mask, heads.kv_of_head, scoring).float()
    of_head = heads.kv_of_head
    if of_head is None:
        of_head = torch.arange(heads.num_heads, device=q.device) * cache.shape[0] // heads.num_heads
    queries, keys, values = (x.transpose(0, 1)[None] for x in (q, keys[:, of_head], values[:, of_head]))
    causal = None if both_ways else _causal(len(q), len(slots))  # what flash attention has a kernel for
    mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=causal, scale=scoring.scale)
    return mixed[0].transpose(0, 1).float()


def _causal(count: int, length: int) -> Tensor:
    """Return the bias [T, S] with which the last T of S positions see no later ones.

    Imported here, where a GPU computes: with its module comes torch's compiler, 1.5 s of every start of a rank.
    """
    from torch.nn.attention.bias import causal_lower_right

    bias: Tensor = causal_lower_right(count, length)
    return bias


def _mask(count: int, length: int, ahead: int | None, window: int | None, device: torch.device) -> Tensor:
    """Return the mask [1, 1, T, S] of the last T of S positions; ahead: how many behind it each sees, None for all."""
    positions = torch.arange(length, device=device)
    own = positions[length - count :, None]
    visible = positions <= (own + ahead if ahead is not None else length)
    if window is not None:
        visible &= positions > (own if ahead is not None else length - 1) - window
    return visible[None, None]


def _taken(kept: Kept, slots: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the vectors [S, K, d] of slots in dtype."""
    vectors = kept.vectors.index_select(0, slots)
    return vectors.to(dtype) if kept.scales is None else decode(vectors, kept.scales.index_select(0, slots), dtype)
