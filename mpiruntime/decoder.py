"""The decoder: embedding, layers, this rank's part of the logits, and sums of hidden states."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ollampi.kernels.linear import Matrix
from ollampi.mpiruntime.attention import Attention
from ollampi.mpiruntime.batch import Batch
from ollampi.mpiruntime.checkpoint import Weights
from ollampi.mpiruntime.communicator import Communicator
from ollampi.mpiruntime.kv_cache import KVCache
from ollampi.mpiruntime.layers import Embedding, Norm, RotaryTable
from ollampi.mpiruntime.mixing import Heads, Mixing, heads_of
from ollampi.mpiruntime.mlp import MLP
from ollampi.mpiruntime.model_config import ModelConfig
from ollampi.mpiruntime.shard import Shard

Watch = Callable[[str, Tensor], None]


def look_away(part: str, x: Tensor) -> None:
    """Do nothing."""


@dataclass(frozen=True)
class Output:
    """What a step is made for, on rank 0: logits [B', V] in fp32, pooled [P, D] in fp64; None where not asked for."""

    logits: Tensor | None = None
    pooled: Tensor | None = None


class DecoderLayer:
    """x + attention(norm(x)), then x + mlp(norm(x)); two all-reduces."""

    def __init__(
        self, weights: Weights, config: ModelConfig, shard: Shard, heads: Heads, comm: Communicator, layer: int
    ) -> None:
        self.number = layer
        self.attention_norm = Norm(weights / "input_layernorm", config.width, config.norm_eps)
        self.attention = Attention(weights / "self_attn", config, heads, comm, layer)
        self.mlp_norm = Norm(weights / "post_attention_layernorm", config.width, config.norm_eps)
        self.mlp = MLP(weights / "mlp", config, shard, comm)

    def __call__(self, x: Tensor, mixing: Mixing, watch: Watch) -> Tensor:
        """Return the layer's output [T, D] in fp32 in the place of x [T, D]; collective."""
        x += self.attention(self.attention_norm(x), mixing)
        watch(f"the attention of layer {self.number}", x)
        x += self.mlp(self.mlp_norm(x))
        watch(f"the MLP of layer {self.number}", x)
        return x

    def parts(self) -> list[Norm | Attention | MLP]:
        """Return the parts that hold weights."""
        return [self.attention_norm, self.attention, self.mlp_norm, self.mlp]


class Decoder:
    """One rank's slice of a model. The residual stream stays in fp32 whatever the dtype of the weights.

    Built on every rank from the same config and checkpoint; `context` is the number of positions that it can hold.
    """

    def __init__(self, weights: Weights, config: ModelConfig, shard: Shard, comm: Communicator, context: int) -> None:
        body = weights / "model" if "model.embed_tokens.weight" in weights else weights
        self.comm = comm
        self.arithmetic = weights.arithmetic
        self.heads = heads_of(config, shard)
        self.piece_tokens = self.heads.piece_tokens if weights.arithmetic.attends_natively else 0
        self.rotary = RotaryTable(config.rope, config.head_dim, context, weights.arithmetic)
        self.embedding = Embedding(body / "embed_tokens", config, shard, comm)
        self.layers = [
            DecoderLayer(body / f"layers.{i}", config, shard, self.heads, comm, i) for i in range(config.num_layers)
        ]
        self.norm = Norm(body / "norm", config.width, config.norm_eps)
        self.head = self.embedding if config.num_tables == 1 else Embedding(weights / "lm_head", config, shard, comm)

    def __call__(self, batch: Batch, cache: KVCache, watch: Watch = look_away) -> Output:
        """Return the logits of the batch's logit rows and the sums of its pools on rank 0; collective.

        watch sees the residual stream [T, D] behind each part, named for people; only one rank need to look.
        """
        x = self.embedding(batch.tokens)
        watch("the embedding", x)
        mixing = Mixing(self.arithmetic, self.heads, batch, *self.rotary.at(batch.positions), cache)
        for layer in self.layers:
            x = layer(x, mixing, watch)
        pooled = self._pooled(x, batch.pools) if batch.pools and self.comm.rank == 0 else None
        if not len(batch.logit_rows):
            return Output(pooled=pooled)
        return Output(self.comm.gather(self.head.logits(self.norm(x[batch.logit_rows]))), pooled)

    def _pooled(self, x: Tensor, pools: list[slice]) -> Tensor:
        """Return the sum of each pool's rows of x [T, D] behind the last norm, [P, D] in fp64.

        x is the same on every rank, so that rank 0 needs nobody else for it.
        """
        hidden = self.norm.summands(torch.cat([x[rows] for rows in pools]))
        parts = torch.split(hidden, [rows.stop - rows.start for rows in pools])
        return torch.stack([part.sum(0) for part in parts])

    def tensors(self) -> list[Matrix]:
        """Return all weights that this rank holds, each once."""
        parts = [self.embedding, self.norm, *(p for layer in self.layers for p in layer.parts())]
        if self.head is not self.embedding:
            parts.append(self.head)
        return [t for part in parts for t in part.tensors()]

    @property
    def size_bytes(self) -> int:
        """Return the bytes of weights that this rank holds."""
        return sum(t.nbytes for t in self.tensors())
