"""Let the tokens of a step attend, layer by layer: natively over the blocks of the cache, or by torch over copies."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ollampi.kernels.ops import rotate
from ollampi.kernels.paged_attention import PagedAttention, Pieces, piece_tokens
from ollampi.mpiruntime.arithmetic import Arithmetic
from ollampi.mpiruntime.batch import Batch
from ollampi.mpiruntime.kv_cache import KVCache
from ollampi.mpiruntime.model_config import ModelConfig
from ollampi.mpiruntime.shard import Shard


@dataclass(frozen=True)
class Heads:
    """The query and KV heads of one rank.

    first_heads [K + 1]: of each KV head the first query head that looks at it, and their number at the end;
    kv_of_head: as kernels.attention wants it. Neighbouring ranks may hold the same KV head, where a group is cut.
    """

    query: range
    kv: range
    size: int
    first_heads: Tensor
    kv_of_head: Tensor | None

    @property
    def piece_tokens(self) -> int:
        """Return the most tokens that attend together natively; 0 without a library."""
        return piece_tokens(int(self.first_heads.diff().max()))


def heads_of(config: ModelConfig, shard: Shard) -> Heads:
    """Return the heads of the rank of `shard`."""
    query, kv = shard.heads(config.num_heads, config.num_kv_heads)
    group = config.num_heads // config.num_kv_heads
    first = [max(0, k * group - query.start) for k in kv] + [len(query)]
    each = len(query) // len(kv)
    equal = first == [k * each for k in range(len(kv) + 1)]
    kv_of_head = None if equal else torch.tensor([h // group - kv.start for h in query])
    return Heads(query, kv, config.head_dim, torch.tensor(first), kv_of_head)


class Mixing:
    """Attention of one step: every layer keeps the keys and values of its tokens, then the tokens look at the cache.

    cos, sin [T, d/2] of the tokens' positions. A batch in pieces is computed natively, one in spans by torch.
    """

    def __init__(
        self, arithmetic: Arithmetic, heads: Heads, batch: Batch, cos: Tensor, sin: Tensor, cache: KVCache
    ) -> None:
        self._arithmetic = arithmetic
        self._heads = heads
        self._batch = batch
        self._cos, self._sin = cos, sin
        self._cache = cache
        self._paged = None if batch.pieces is None else self._native(batch.pieces)
        cache.note(batch.slots)

    def __call__(self, layer: int, qkv: Tensor) -> Tensor:
        """Return the mix [T, H d] of a layer for its projections qkv [T, (H + 2K) d], which it may change."""
        return self._by_torch(layer, qkv) if self._paged is None else self._paged.mix(layer, qkv)

    def _by_torch(self, layer: int, qkv: Tensor) -> Tensor:
        """Return what the call does, by torch."""
        heads = self._heads
        sizes = [len(heads.query), len(heads.kv), len(heads.kv)]
        q, k, v = torch.split(qkv.view(len(qkv), -1, heads.size), sizes, dim=1)
        k, v = self._arithmetic.cached(rotate(k, self._cos, self._sin), v)
        self._cache.write(layer, self._batch.slots, k, v)
        q = rotate(q, self._cos, self._sin)
        mixed = torch.empty_like(q)
        for span in self._batch.spans:
            keys, values = self._cache.read(layer, span.keys, span.num_sequences)
            mixed[span.queries] = self._arithmetic.attend(q[span.queries], keys, values, span.mask, heads.kv_of_head)
        return mixed.view(len(qkv), -1)

    def _native(self, pieces: Pieces) -> PagedAttention:
        """Return the native attention of the step."""
        cache = self._cache
        return PagedAttention(
            cache.keys.kept,
            cache.values.kept,
            cache.block_size,
            self._heads.first_heads,
            self._cos,
            self._sin,
            self._batch.slots,
            pieces,
        )
