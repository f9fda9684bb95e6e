"""The decoder: embedding, layers, this rank's part of the logits, and sums of hidden states."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ollampi.kernels.linear import Matrix, format_of
from ollampi.mpiruntime.batch import Batch
from ollampi.mpiruntime.decoder_layer import (
    AnyLayer,
    Cut,
    DecoderLayer,
    ParallelLayer,
    Passage,
    Travel,
    Watch,
    arrived,
    at_once,
    look_away,
)
from ollampi.mpiruntime.deferred import deferred
from ollampi.mpiruntime.families import BODIES
from ollampi.mpiruntime.gpu_batch import GpuBatch
from ollampi.mpiruntime.kv_cache import KVCache
from ollampi.mpiruntime.layers import Embedding, Norm, Places, norm_of
from ollampi.mpiruntime.mixing import Mixing, heads_of, sights_of
from ollampi.mpiruntime.mixture import Mixture
from ollampi.mpiruntime.model_config import ModelConfig
from ollampi.mpiruntime.rope import Rope
from ollampi.mpiruntime.rotary import RotaryTable
from ollampi.mpiruntime.weights import Weights


@dataclass(frozen=True)
class Output:
    """What a step is made for, on rank 0: logits [B', V] in fp32, pooled [P, D] in fp64; None where not asked for."""

    logits: Tensor | None = None
    pooled: Tensor | None = None


class Decoder:
    """One rank's slice of a model. The residual stream stays in fp32 whatever the dtype of the weights.

    Built on every rank from the same config and checkpoint; `context` is the number of positions that it can hold.
    """

    def __init__(self, weights: Weights, config: ModelConfig, cut: Cut, context: int) -> None:
        body = _body(weights, config)
        self.comm = cut.comm
        self.sums = cut.sums
        self.residence = weights.residence
        self.arithmetic = weights.arithmetic
        self.both_ways = config.encoder
        self.heads = heads_of(config, cut.shard, weights.device)
        self.piece_tokens = self.heads.piece_tokens if weights.arithmetic.attends_natively else 0
        self.sights = sights_of(config)
        ropes = {sight.rope for sight in self.sights if sight.rope is not None}
        self.tables = {rope: RotaryTable(rope, context, weights.arithmetic, weights.device) for rope in ropes}
        self.embedding = Embedding(body / config.names.tokens, config, cut.shard, cut.sums)
        self.embedding_scale = config.embedding_scale
        self.places = Places(body / "embeddings", config) if config.encoder else None
        kind = ParallelLayer if config.parallel else DecoderLayer
        self.layers = [
            kind(own, config, cut, self.heads, i)
            for i, own in enumerate(body.each_layer(config.names.layer, config.num_layers))
        ]
        self.deferring = [layer for layer in self.layers if isinstance(layer, DecoderLayer) and cut.joint]
        self.norm = None if config.encoder else norm_of(body / config.names.norm, config)
        self.head = self.embedding if config.num_tables == 1 else _head(weights, config, cut)

    def __call__(self, batches: Sequence[Batch | GpuBatch], cache: KVCache, watch: Watch = look_away) -> Output:
        """Return the logits of the step's logit rows and the sums of its pools on rank 0; collective.

        batches: as make_batches returns them; where there are several, each is computed while others are exchanged.
        watch sees the residual stream [T, D] behind each part, named for people; only one rank need to look.
        """
        x = self.embedding(torch.cat([batch.tokens for batch in batches]))
        if self.embedding_scale != 1:
            x *= self.embedding_scale
        if self.places is not None:
            x = self.places(x, torch.cat([batch.positions for batch in batches]))
        watch("the embedding", x)
        start = at_once(self.sums) if len(batches) == 1 else self.sums.all_reduce_later
        parts = torch.split(x, [len(batch.tokens) for batch in batches])
        ways = [Travel(self._mixing(batch, cache), start, watch) for batch in batches]
        turns = self.residence.turns(self.layers, len(batches))
        x = torch.cat(arrived(self._passage(*each) for each in zip(turns, parts, ways, strict=True)))
        wanted = batches[0]
        pooled = self._pooled(x, wanted.pools) if wanted.pools and self.comm.rank == 0 else None
        if self.norm is None or not len(wanted.logit_rows):
            return Output(pooled=pooled)
        return Output(self.comm.gather(self.head.logits(self.norm(x[wanted.logit_rows]))), pooled)

    def _mixing(self, batch: Batch | GpuBatch, cache: KVCache) -> Mixing:
        """Return the attention of a batch."""
        return Mixing(self.arithmetic, self.heads, batch, cache, self.sights, self._angles(batch.positions))

    def _passage(self, layers: Iterator[AnyLayer], x: Tensor, travel: Travel) -> Passage:
        """Return x [T, D] behind the last of the layers, maybe in the place of x; collective."""
        if self.deferring:
            return (yield from deferred((each for each in layers if isinstance(each, DecoderLayer)), x, travel))
        for layer in layers:
            x = yield from layer(x, travel)
        return x

    def _angles(self, positions: Tensor) -> dict[Rope | None, tuple[Tensor, Tensor]]:
        """Return cos, sin [T, r/2] of positions [T] for each rope; nothing is turned where there is none."""
        angles: dict[Rope | None, tuple[Tensor, Tensor]] = {
            rope: table.at(positions) for rope, table in self.tables.items()
        }
        return angles or {None: (torch.empty(len(positions), 0, device=positions.device),) * 2}

    def _pooled(self, x: Tensor, pools: list[slice]) -> Tensor:
        """Return the sum of each pool's rows of x [T, D] behind the last norm, [P, D] in fp64.

        x is the same on every rank, so that rank 0 needs nobody else for it.
        """
        hidden = torch.cat([x[rows] for rows in pools])
        if isinstance(self.norm, Norm):
            hidden = self.norm.summands(hidden)
        else:
            hidden = (hidden if self.norm is None else self.norm(hidden)).double()
        parts = torch.split(hidden, [rows.stop - rows.start for rows in pools])
        return torch.stack([part.sum(0) for part in parts])

    def tensors(self) -> list[Matrix]:
        """Return all weights that this rank holds, each once."""
        ends = [self.places, self.norm, None if self.head is self.embedding else self.head]
        parts = [self.embedding, *ends, *(p for layer in self.layers for p in layer.parts())]
        return [t for part in parts if part is not None for t in part.tensors()]

    def lasting(self) -> Iterator[tuple[str, list[Matrix]]]:
        """Yield the weights that stay in this rank's memory, by the part of the model, which is named for people."""
        yield "the embedding", self.embedding.tensors()
        if self.places is not None:
            yield "the positions", self.places.tensors()
        for layer in self.layers:
            if self.residence.stays(layer.number):
                yield f"layer {layer.number}", [t for part in layer.parts() for t in part.tensors()]
        if self.norm is not None:
            yield "the last norm", self.norm.tensors()
        if self.head is not self.embedding:
            yield "the output head", self.head.tensors()

    @property
    def is_recordable(self) -> bool:
        """Return whether a step is the same work whatever its numbers: experts are chosen by them."""
        return not any(isinstance(part, Mixture) for layer in self.layers for part in layer.parts())

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
        """Return the bytes of weights that this rank holds at a time."""
        return sum(t.nbytes for t in self.tensors()) - self.residence.shared_bytes


def _body(weights: Weights, config: ModelConfig) -> Weights:
    """Return the weights of all but the output head: under a prefix, which says what the model is a part of."""
    for prefix in BODIES:
        if f"{config.names.tokens}.weight" in weights / prefix:
            return weights / prefix
    return weights / BODIES[0]


def _head(weights: Weights, config: ModelConfig, cut: Cut) -> Embedding:
    """Return the output head."""
    inner = weights / "language_model"
    outer = inner if "lm_head.weight" in inner and "lm_head.weight" not in weights else weights
    return Embedding(outer / "lm_head", config, cut.shard, cut.comm, config.head_bias)
