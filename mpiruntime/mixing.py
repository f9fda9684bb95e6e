"""Let the tokens of a step attend, layer by layer: natively over the blocks of the cache, or by torch over copies."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ollampi.kernels.attention import Scoring
from ollampi.kernels.device_attention import OnHeads, Turning, look, look_together, turn_and_keep
from ollampi.kernels.ops import rotate
from ollampi.kernels.paged_attention import HeadNorms, PagedAttention, Pieces, piece_tokens
from ollampi.mpiruntime.arithmetic import Arithmetic
from ollampi.mpiruntime.batch import Batch
from ollampi.mpiruntime.gpu_arithmetic import OnGpu
from ollampi.mpiruntime.gpu_batch import GpuBatch
from ollampi.mpiruntime.kv_cache import KVCache
from ollampi.mpiruntime.model_config import ModelConfig
from ollampi.mpiruntime.rope import Rope
from ollampi.mpiruntime.shard import Shard


@dataclass(frozen=True)
class Heads:
    """The query and KV heads of one rank.

    first_heads [K + 1]: of each KV head the first query head that looks at it, and their number at the end;
    kv_of_head: as kernels.attention wants it; on_gpu: both as kernels.device_attention does. Neighbouring ranks may
    hold the same KV head, where a group is cut.
    """

    query: range
    kv: range
    size: int
    first_heads: Tensor
    kv_of_head: Tensor | None
    on_gpu: OnHeads

    @property
    def piece_tokens(self) -> int:
        """Return the most tokens that attend together natively; 0 without a library."""
        return piece_tokens(self.on_gpu.most)


def heads_of(config: ModelConfig, shard: Shard, device: torch.device) -> Heads:
    """Return the heads of the rank of `shard`; device: where on_gpu is."""
    query, kv = shard.heads(config.num_heads, config.num_kv_heads)
    group = config.num_heads // config.num_kv_heads
    first = [max(0, k * group - query.start) for k in kv] + [len(query)]
    each = len(query) // len(kv)
    equal = first == [k * each for k in range(len(kv) + 1)]
    of_head = None if equal else [h // group - kv.start for h in query]
    most = max(last - begin for begin, last in pairwise(first))
    on_gpu = OnHeads(
        first_heads=torch.tensor(first, dtype=torch.int32, device=device),
        kv_of_head=None if of_head is None else torch.tensor(of_head, device=device),
        num_heads=len(query),
        most=most,
    )
    kv_of_head = None if of_head is None else torch.tensor(of_head)
    return Heads(query, kv, config.head_dim, torch.tensor(first), kv_of_head, on_gpu)


@dataclass(frozen=True)
class Sight:
    """How the tokens of a layer look at others: layers with equal ones share all that a step prepares."""

    scoring: Scoring
    rope: Rope | None


def sights_of(config: ModelConfig) -> list[Sight]:
    """Return how each layer looks."""
    return [
        Sight(Scoring(config.attention_scale, config.attention_cap, layer.window), layer.rope)
        for layer in config.layers
    ]


class Mixing:
    """Attention of one step: every layer keeps the keys and values of its tokens, then the tokens look at the cache.

    sights: of each layer; angles: of each rope cos, sin [T, r/2] of the tokens' positions. A batch in pieces is
    computed natively, one in spans by torch, one of a GPU there.
    """

    def __init__(
        self,
        arithmetic: Arithmetic,
        heads: Heads,
        batch: Batch | GpuBatch,
        cache: KVCache,
        sights: list[Sight],
        angles: dict[Rope | None, tuple[Tensor, Tensor]],
    ) -> None:
        self._arithmetic = arithmetic
        self._heads = heads
        self._batch = batch
        self._cache = cache
        self._sights = sights
        self._angles = angles
        self._paged: dict[Sight, PagedAttention] = {}
        if isinstance(batch, Batch):
            if batch.pieces is not None:
                self._paged = {sight: self._native(batch, batch.pieces, sight) for sight in dict.fromkeys(sights)}
            cache.note(batch.slots)

    def __call__(self, layer: int, qkv: Tensor, norms: HeadNorms | None = None) -> Tensor:
        """Return the mix [T, H d] of a layer for its projections qkv [T, (H + 2K) d], which it may change.

        norms: of the heads of queries and keys, where the model has them.
        """
        sight = self._sights[layer]
        if isinstance(self._batch, GpuBatch):
            return self._on_gpu(layer, self._batch, qkv, norms, sight)
        paged = self._paged.get(sight)
        return self._by_torch(layer, self._batch, qkv, norms, sight) if paged is None else paged.mix(layer, qkv, norms)

    def _on_gpu(self, layer: int, batch: GpuBatch, qkv: Tensor, norms: HeadNorms | None, sight: Sight) -> Tensor:
        """Return what the call does, on a GPU."""
        assert isinstance(self._arithmetic, OnGpu)
        kernels, heads, looks = self._arithmetic.kernels, self._heads.on_gpu, batch.looks
        cache = self._cache.layers[layer]
        q = turn_and_keep(qkv, norms, Turning(*self._angles[sight.rope], batch.slots), cache, heads, kernels)
        if looks.rows is not None and looks.places is None:
            return look(q, looks.rows, cache, heads, sight.scoring, kernels).flatten(1)
        mixed = torch.empty_like(q, memory_format=torch.contiguous_format)
        if looks.rows is not None and looks.places is not None:
            alone = look(q[looks.places], looks.rows, cache, heads, sight.scoring, kernels)
            mixed.index_copy_(0, looks.places, alone)
        for prompt in looks.prompts:
            mixed[prompt.queries] = look_together(
                q[prompt.queries], prompt.slots, looks.both_ways, cache, heads, sight.scoring, qkv.dtype
            )
        return mixed.flatten(1)

    def _by_torch(self, layer: int, batch: Batch, qkv: Tensor, norms: HeadNorms | None, sight: Sight) -> Tensor:
        """Return what the call does, by torch."""
        heads, angles = self._heads, self._angles[sight.rope]
        sizes = [len(heads.query), len(heads.kv), len(heads.kv)]
        q, k, v = torch.split(qkv.view(len(qkv), -1, heads.size), sizes, dim=1)
        if norms is not None:
            q, k = self._normed(q, norms.queries, norms.eps), self._normed(k, norms.keys, norms.eps)
        k, v = self._arithmetic.cached(rotate(k, *angles), v)
        self._cache.write(layer, batch.slots, k, v)
        q = rotate(q, *angles)
        mixed = torch.empty_like(q)
        for span in batch.spans:
            keys, values = self._cache.read(layer, span.keys, span.num_sequences)
            mask = span.mask(sight.scoring.window)
            mixed[span.queries] = self._arithmetic.attend(
                q[span.queries], keys, values, mask, heads.kv_of_head, sight.scoring
            )
        return mixed.view(len(qkv), -1)

    def _normed(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Return x [T, H, d] with each head normalised."""
        return self._arithmetic.rms_norm(x.reshape(-1, x.shape[-1]), weight, eps).view(x.shape)

    def _native(self, batch: Batch, pieces: Pieces, sight: Sight) -> PagedAttention:
        """Return the native attention of the layers that look alike."""
        cache = self._cache
        return PagedAttention(
            cache.keys.kept,
            cache.values.kept,
            cache.block_size,
            self._heads.first_heads,
            *self._angles[sight.rope],
            batch.slots,
            pieces,
            sight.scoring,
        )
