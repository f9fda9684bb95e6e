"""Attention of one decoder layer over this rank's heads."""

from __future__ import annotations

import torch
from torch import Tensor

from ollampi.kernels.linear import Matrix
from ollampi.kernels.ops import rotate
from ollampi.mpiruntime.batch import Batch
from ollampi.mpiruntime.checkpoint import Weights
from ollampi.mpiruntime.communicator import Communicator
from ollampi.mpiruntime.kv_cache import KVCache
from ollampi.mpiruntime.layers import RowParallel
from ollampi.mpiruntime.model_config import ModelConfig
from ollampi.mpiruntime.shard import Shard


class Attention:
    """Query, key and value projections cut by heads (column parallel), output projection cut by heads (row parallel).

    Neighbouring ranks may hold the same KV head, where a group of query heads is cut.
    """

    def __init__(self, weights: Weights, config: ModelConfig, shard: Shard, comm: Communicator, layer: int) -> None:
        heads, kv_heads = shard.heads(config.num_heads, config.num_kv_heads)
        d, width = config.head_dim, config.width
        self.arithmetic = weights.arithmetic
        self.layer = layer
        self.head_dim = d
        self.num_heads, self.num_kv_heads = len(heads), len(kv_heads)
        self.kv_of_head = _kv_of_head(heads, kv_heads, config.num_heads // config.num_kv_heads)
        q_rows = range(heads.start * d, heads.stop * d)
        kv_rows = range(kv_heads.start * d, kv_heads.stop * d)
        q_size, kv_size = config.num_heads * d, config.num_kv_heads * d
        cuts = [("q_proj", q_size, q_rows), ("k_proj", kv_size, kv_rows), ("v_proj", kv_size, kv_rows)]
        self.qkv = weights.stacked_rows([(f"{name}.weight", (size, width), rows) for name, size, rows in cuts])
        self.bias = (
            torch.cat([weights.vector(f"{name}.bias", size, rows) for name, size, rows in cuts])
            if config.attention_bias
            else None
        )
        self.output = RowParallel(weights / "o_proj", (width, q_size), q_rows, config.attention_bias, comm)

    def __call__(self, x: Tensor, batch: Batch, cos: Tensor, sin: Tensor, cache: KVCache) -> Tensor:
        """Return the layer's mix for x [T, D] as [T, D] in fp32; collective. Stores new keys and values."""
        num_tokens = len(x)
        qkv = self.arithmetic.linear(x, self.qkv, self.bias).view(num_tokens, -1, self.head_dim)
        q, k, v = torch.split(qkv, [self.num_heads, self.num_kv_heads, self.num_kv_heads], dim=1)
        cache.write(self.layer, batch.slots, *self.arithmetic.cached(rotate(k, cos, sin), v))
        q = rotate(q, cos, sin)
        mixed = torch.empty_like(q)
        for span in batch.spans:
            keys, values = cache.read(self.layer, span.keys, span.num_sequences)
            mixed[span.queries] = self.arithmetic.attend(q[span.queries], keys, values, span.mask, self.kv_of_head)
        return self.output(mixed.view(num_tokens, -1))

    def tensors(self) -> list[Matrix]:
        """Return the weights held."""
        return [self.qkv, *([] if self.bias is None else [self.bias]), *self.output.tensors()]


def _kv_of_head(heads: range, kv_heads: range, group: int) -> Tensor | None:
    """Return for each query head of this rank the index of its KV head, or None where whole equal groups share one."""
    indices = [h // group - kv_heads.start for h in heads]
    each = len(heads) // len(kv_heads)
    if indices == [h // each for h in range(len(heads))] and len(heads) == each * len(kv_heads):
        return None
    return torch.tensor(indices)
