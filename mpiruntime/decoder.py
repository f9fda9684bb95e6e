"""The decoder: embedding, layers, this rank's part of the logits, and sums of hidden states."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ollampi.kernels.linear import Matrix, format_of
from ollampi.mpiruntime.attention import Attention
from ollampi.mpiruntime.batch import Batch
from ollampi.mpiruntime.communicator import Communicator
from ollampi.mpiruntime.kv_cache import KVCache
from ollampi.mpiruntime.layers import AnyNorm, Embedding, Norm, Places, norm_of
from ollampi.mpiruntime.mixing import Heads, Mixing, heads_of, sights_of
from ollampi.mpiruntime.mixture import Mixture
from ollampi.mpiruntime.mlp import MLP, PlainMLP
from ollampi.mpiruntime.model_config import ModelConfig
from ollampi.mpiruntime.rope import Rope
from ollampi.mpiruntime.rotary import RotaryTable
from ollampi.mpiruntime.shard import Shard
from ollampi.mpiruntime.weights import Weights

Watch = Callable[[str, Tensor], None]
Part = Attention | MLP | PlainMLP | Mixture
_BODIES = ("model", "", "model.language_model", "language_model.model", "bert")


class HasTensors(Protocol):
    """A part of a model that holds weights."""

    def tensors(self) -> list[Matrix]:
        """Return the weights held."""


@dataclass(frozen=True)
class Cut:
    """How a model is cut, and where its parts meet.

    spread: experts are dealt out whole, instead of each being cut.
    """

    shard: Shard
    comm: Communicator
    spread: bool = False


def look_away(part: str, x: Tensor) -> None:
    """Do nothing."""


@dataclass(frozen=True)
class Output:
    """What a step is made for, on rank 0: logits [B', V] in fp32, pooled [P, D] in fp64; None where not asked for."""

    logits: Tensor | None = None
    pooled: Tensor | None = None


class Residual:
    """x + part(x), with norms where the family wants them: before the part, around it, or after the sum."""

    def __init__(self, part: Part, before: AnyNorm | None, behind: AnyNorm | None, after: AnyNorm | None) -> None:
        self.part = part
        self.before = before
        self.behind = behind
        self.after = after

    def __call__(self, x: Tensor, *more: Mixing) -> Tensor:
        """Return the sum [T, D] in fp32, maybe in the place of x [T, D]; collective."""
        found = self.part(x if self.before is None else self.before(x), *more)
        x += found if self.behind is None else self.behind(found)
        return x if self.after is None else self.after(x)

    def parts(self) -> list[HasTensors]:
        """Return the parts that hold weights."""
        return [part for part in (self.before, self.part, self.behind, self.after) if part is not None]


class DecoderLayer:
    """Attention, then the MLP or the experts, each added to what went in; two all-reduces."""

    def __init__(self, weights: Weights, config: ModelConfig, cut: Cut, heads: Heads, layer: int) -> None:
        self.number = layer
        names = config.names
        attention = Attention(weights / names.attention, config, heads, cut.comm, layer)
        self.attention = _residual(weights, config, attention, names.attention_norm, names.attention_sum_norm)
        mlp: Part
        if config.layers[layer].has_experts:
            mlp = Mixture(weights, config, cut.shard, cut.comm, cut.spread)
        else:
            kind = PlainMLP if config.encoder else MLP
            mlp = kind(weights / names.mlp, config, cut.shard, cut.comm)
        self.mlp = _residual(weights, config, mlp, names.mlp_norm, names.mlp_sum_norm)

    def __call__(self, x: Tensor, mixing: Mixing, watch: Watch) -> Tensor:
        """Return the layer's output [T, D] in fp32, maybe in the place of x [T, D]; collective."""
        x = self.attention(x, mixing)
        watch(f"the attention of layer {self.number}", x)
        x = self.mlp(x)
        watch(f"the MLP of layer {self.number}", x)
        return x

    def parts(self) -> list[HasTensors]:
        """Return the parts that hold weights."""
        return self.attention.parts() + self.mlp.parts()


def _residual(weights: Weights, config: ModelConfig, part: Part, before: str, after: str) -> Residual:
    """Return a part with the norms that the family has around it, by their names."""
    first = None if config.norms == "after" else norm_of(weights / before, config)
    second = None if config.norms == "before" else norm_of(weights / after, config)
    return Residual(part, first, *((second, None) if config.norms == "around" else (None, second)))


class Decoder:
    """One rank's slice of a model. The residual stream stays in fp32 whatever the dtype of the weights.

    Built on every rank from the same config and checkpoint; `context` is the number of positions that it can hold.
    """

    def __init__(self, weights: Weights, config: ModelConfig, cut: Cut, context: int) -> None:
        body = _body(weights, config)
        shard, comm = cut.shard, cut.comm
        self.comm = comm
        self.arithmetic = weights.arithmetic
        self.both_ways = config.encoder
        self.heads = heads_of(config, shard)
        self.piece_tokens = self.heads.piece_tokens if weights.arithmetic.attends_natively else 0
        self.sights = sights_of(config)
        ropes = {sight.rope for sight in self.sights if sight.rope is not None}
        self.tables = {rope: RotaryTable(rope, context, weights.arithmetic) for rope in ropes}
        self.embedding = Embedding(body / config.names.tokens, config, shard, comm)
        self.embedding_scale = config.embedding_scale
        self.places = Places(body / "embeddings", config) if config.encoder else None
        self.layers = [
            DecoderLayer(body / config.names.layer.format(i), config, cut, self.heads, i)
            for i in range(config.num_layers)
        ]
        self.norm = None if config.encoder else norm_of(body / config.names.norm, config)
        self.head = self.embedding if config.num_tables == 1 else _head(weights, config, cut)

    def __call__(self, batch: Batch, cache: KVCache, watch: Watch = look_away) -> Output:
        """Return the logits of the batch's logit rows and the sums of its pools on rank 0; collective.

        watch sees the residual stream [T, D] behind each part, named for people; only one rank need to look.
        """
        x = self.embedding(batch.tokens)
        if self.embedding_scale != 1:
            x *= self.embedding_scale
        if self.places is not None:
            x = self.places(x, batch.positions)
        watch("the embedding", x)
        mixing = Mixing(self.arithmetic, self.heads, batch, cache, self.sights, self._angles(batch.positions))
        for layer in self.layers:
            x = layer(x, mixing, watch)
        pooled = self._pooled(x, batch.pools) if batch.pools and self.comm.rank == 0 else None
        if self.norm is None or not len(batch.logit_rows):
            return Output(pooled=pooled)
        return Output(self.comm.gather(self.head.logits(self.norm(x[batch.logit_rows]))), pooled)

    def _angles(self, positions: Tensor) -> dict[Rope | None, tuple[Tensor, Tensor]]:
        """Return cos, sin [T, r/2] of positions [T] for each rope; nothing is turned where there is none."""
        angles: dict[Rope | None, tuple[Tensor, Tensor]] = {
            rope: table.at(positions) for rope, table in self.tables.items()
        }
        return angles or {None: (torch.empty(len(positions), 0),) * 2}

    def _pooled(self, x: Tensor, pools: list[slice]) -> Tensor:
        """Return the sum of each pool's rows of x [T, D] behind the last norm, [P, D] in fp64.

        x is the same on every rank, so that rank 0 needs nobody else for it.
        """
        hidden = torch.cat([x[rows] for rows in pools])
        hidden = self.norm.summands(hidden) if isinstance(self.norm, Norm) else hidden.double()
        parts = torch.split(hidden, [rows.stop - rows.start for rows in pools])
        return torch.stack([part.sum(0) for part in parts])

    def tensors(self) -> list[Matrix]:
        """Return all weights that this rank holds, each once."""
        ends = [self.places, self.norm, None if self.head is self.embedding else self.head]
        parts = [self.embedding, *ends, *(p for layer in self.layers for p in layer.parts())]
        return [t for part in parts if part is not None for t in part.tensors()]

    @property
    def formats(self) -> list[str]:
        """Return what the matrices are kept in, as kernels.choice names formats, what takes most first."""
        sizes = Counter[str]()
        for tensor in self.tensors():
            if len(tensor.shape) == 2 and tensor.dtype != torch.float64:  # a router, which is none of the kernels' work
                sizes[format_of(tensor)] += tensor.nbytes
        return [name for name, _ in sizes.most_common()]

    @property
    def size_bytes(self) -> int:
        """Return the bytes of weights that this rank holds."""
        return sum(t.nbytes for t in self.tensors())


def _body(weights: Weights, config: ModelConfig) -> Weights:
    """Return the weights of all but the output head: under a prefix, which says what the model is a part of."""
    for prefix in _BODIES:
        if f"{config.names.tokens}.weight" in weights / prefix:
            return weights / prefix
    return weights / _BODIES[0]


def _head(weights: Weights, config: ModelConfig, cut: Cut) -> Embedding:
    """Return the output head."""
    inner = weights / "language_model"
    outer = inner if "lm_head.weight" in inner and "lm_head.weight" not in weights else weights
    return Embedding(outer / "lm_head", config, cut.shard, cut.comm)
