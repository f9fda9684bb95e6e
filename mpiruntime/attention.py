"""Attention of one decoder layer over this rank's heads."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ollampi.kernels.linear import Matrix
from ollampi.kernels.paged_attention import HeadNorms
from ollampi.mpiruntime.communicator import Communicator
from ollampi.mpiruntime.gguf_source import in_llama_cpp
from ollampi.mpiruntime.layers import Norm, RowParallel
from ollampi.mpiruntime.mixing import Heads, Mixing
from ollampi.mpiruntime.model_config import ModelConfig
from ollampi.mpiruntime.weights import Weights


class Attention:
    """Query, key and value projections cut by heads (column parallel), output projection likewise (row parallel)."""

    def __init__(self, weights: Weights, config: ModelConfig, heads: Heads, comm: Communicator, layer: int) -> None:
        self.arithmetic = weights.arithmetic
        self.layer = layer
        cuts = _cuts(config, heads)
        self.qkv = weights.stacked_rows([(f"{name}.weight", (size, config.width), rows) for name, size, rows in cuts])
        self.bias = (
            torch.cat([weights.vector(f"{name}.bias", size, rows) for name, size, rows in cuts])
            if config.qkv_bias
            else None
        )
        of_each = config.norm == "centred"
        self.norms = _head_norms(weights, config) if config.qk_norm and not of_each else None
        self.norm_of_each = NormOfEach(weights, config, heads) if config.qk_norm and of_each else None
        shape = config.width, config.num_heads * config.head_dim
        of_rank = range(heads.query.start * config.head_dim, heads.query.stop * config.head_dim)
        self.output = RowParallel(weights / config.names.attention_output, shape, of_rank, config.output_bias, comm)

    def __call__(self, x: Tensor, mixing: Mixing) -> Tensor:
        """Return this rank's part of the mix for x [T, D] as [T, D]; collective. Stores new keys and values."""
        qkv = self.arithmetic.linear(x, self.qkv, self.bias)
        if self.norm_of_each is not None:
            self.norm_of_each(qkv)
        return self.output(mixing(self.layer, qkv, self.norms))

    def summed(self, total: Tensor) -> Tensor:
        """Return the layer's mix [T, D] in fp32 of the sum of all parts, which it may change."""
        return self.output.summed(total)

    def tensors(self) -> list[Matrix]:
        """Return the weights held."""
        norms = [] if self.norms is None else [self.norms.queries, self.norms.keys]
        norms += [] if self.norm_of_each is None else [self.norm_of_each.weight]
        return [self.qkv, *([] if self.bias is None else [self.bias]), *norms, *self.output.tensors()]


class NormOfEach:
    """LayerNorm without a bias of each head of queries and keys, by weights of its own: Command R+."""

    def __init__(self, weights: Weights, config: ModelConfig, heads: Heads) -> None:
        d = config.head_dim
        of_queries = weights.plain_rows("q_norm.weight", (config.num_heads, d))[heads.query.start : heads.query.stop]
        of_keys = weights.plain_rows("k_norm.weight", (config.num_kv_heads, d))[heads.kv.start : heads.kv.stop]
        order = in_llama_cpp(torch.arange(d, device=weights.device), d)  # that of the projections' rows (Unpaired)
        self.weight = torch.cat([of_queries, of_keys])[:, order if config.paired_rope else slice(None)]
        self.eps = config.norm_eps

    def __call__(self, qkv: Tensor) -> None:
        """Normalise the queries and keys of projections qkv [T, (H + 2K) d] in place."""
        num_heads, d = self.weight.shape
        own = qkv[:, : num_heads * d].view(len(qkv), num_heads, d)
        own.copy_(F.layer_norm(own.float(), (d,), eps=self.eps) * self.weight)


def _cuts(config: ModelConfig, heads: Heads) -> list[tuple[str, int, range]]:
    """Return the tensors of queries, keys and values, their rows, and those of this rank."""
    d, names = config.head_dim, config.names
    sizes = [config.num_heads * d, *[config.num_kv_heads * d] * 2]
    parts = [range(own.start * d, own.stop * d) for own in (heads.query, heads.kv, heads.kv)]
    if not config.fused:
        return list(zip((names.queries, names.keys, names.values), sizes, parts, strict=True))
    begins = [0, sizes[0], sizes[0] + sizes[1]]
    return [
        ("qkv_proj", sum(sizes), range(begin + part.start, begin + part.stop))
        for begin, part in zip(begins, parts, strict=True)
    ]


def _head_norms(weights: Weights, config: ModelConfig) -> HeadNorms:
    """Return the norms of the heads of queries and keys."""
    of_queries, of_keys = (
        Norm(weights / name, config.head_dim, config.norm_eps, config.norm_offset).weight.float()
        for name in ("q_norm", "k_norm")
    )
    return HeadNorms(of_queries, of_keys, config.norm_eps)
