"""Say what a model will take on each rank, before anything of it is read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from ollampi.mpiruntime.communicator import Single
from ollampi.mpiruntime.decoder import Decoder
from ollampi.mpiruntime.decoder_layer import Cut
from ollampi.mpiruntime.layout import Layout, Schedule, run_bytes, schedule
from ollampi.mpiruntime.memory import ITEM_BYTES, RUNTIME_BYTES, cache_bytes, check_groups, is_quantised
from ollampi.mpiruntime.model_config import ModelConfig
from ollampi.mpiruntime.shard import Shard
from ollampi.mpiruntime.source import Source
from ollampi.mpiruntime.synchronization import num_sums
from ollampi.mpiruntime.weights import Counted


@dataclass(frozen=True)
class ShardSize:
    """The bytes of weights of a rank, and where the matrices of its layers lie where these are streamed."""

    total_bytes: int
    layout: Layout

    def schedule(self, num_streamed: int, prefetch_factor: int) -> Schedule:
        """Return which layers are streamed where so many are."""
        return schedule(len(self.layout), num_streamed, prefetch_factor)

    def held_bytes(self, num_streamed: int, prefetch_factor: int) -> int:
        """Return the bytes that are in memory where so many layers are streamed."""
        if not num_streamed:
            return self.total_bytes
        return self._rest_bytes + self.schedule(num_streamed, prefetch_factor).held_bytes(self.runs)

    @cached_property
    def runs(self) -> list[int]:
        """Return the bytes of each layer's run."""
        return [run_bytes(run) for run in self.layout]

    @cached_property
    def _rest_bytes(self) -> int:
        """Return what is held beside the matrices of layers."""
        return self.total_bytes - sum(place.size_bytes for run in self.layout for place in run)


def shard_size(
    config: ModelConfig,
    shard: Shard,
    dtype: str,
    quantize: str = "none",
    spread: bool = False,
    sources: Mapping[str, Source] | None = None,
) -> ShardSize:
    """Return what the decoder of the rank of `shard` would hold, built of tensors without memory.

    dtype: float32 or bfloat16; spread: experts are dealt out whole; sources: the tensors of the checkpoint where there
    is one. Raise CheckpointError where these are not what the config wants.
    """
    weights = Counted(getattr(torch, dtype), quantize=quantize, sources=sources)
    decoder = Decoder(weights, config, Cut(shard, Single(), Single(), spread), context=0)
    return ShardSize(decoder.size_bytes, weights.layout)


def num_parameters(config: ModelConfig) -> int:
    """Return the number of weights of a model, tied ones once."""
    weights = Counted(torch.float32)
    return sum(
        math.prod(t.shape) for t in Decoder(weights, config, Cut(Shard(0, 1), Single(), Single()), context=0).tensors()
    )


@dataclass(frozen=True)
class RankPlan:
    """What one rank will hold: query and KV heads as [first, last), bytes of weights, and of the cache per position.

    shard: what these weights are; step_bytes: what is read in every step where layers are streamed.
    """

    heads: tuple[int, int]
    kv_heads: tuple[int, int]
    weight_bytes: int
    position_bytes: int
    shard: ShardSize | None = None
    step_bytes: int = 0

    def streamed(self, num_streamed: int, prefetch_factor: int) -> RankPlan:
        """Return the same with so many layers streamed."""
        assert self.shard is not None
        held = self.shard.held_bytes(num_streamed, prefetch_factor)
        read = self.shard.schedule(num_streamed, prefetch_factor).step_bytes(self.shard.runs)
        return replace(self, weight_bytes=held, step_bytes=read)

    def total_bytes(self, context: int) -> int:
        """Return all bytes with a cache of so many positions."""
        return self.weight_bytes + context * self.position_bytes + RUNTIME_BYTES


@dataclass(frozen=True)
class Wanted:
    """How a model is to be loaded: as in a Load."""

    size: int
    dtype: str
    quantize: str
    cache_dtype: str
    spread: bool


def plan(config: ModelConfig, wanted: Wanted, sources: Mapping[str, Source] | None = None) -> list[RankPlan]:
    """Return what each rank will hold.

    Raise WorldError or ModelError where the model cannot be cut so, CheckpointError where sources do not fit.
    """
    return [rank_plan(config, wanted, shard, sources) for shard in Shard(0, wanted.size).others()]


def rank_plan(
    config: ModelConfig, wanted: Wanted, shard: Shard, sources: Mapping[str, Source] | None = None
) -> RankPlan:
    """Return what the rank of a shard will hold, whatever number of ranks is wanted; raise as `plan` does."""
    kept = wanted.dtype if wanted.cache_dtype == "auto" else wanted.cache_dtype
    heads, kv_heads = shard.heads(config.num_heads, config.num_kv_heads)
    if is_quantised(wanted.quantize, sources):
        check_groups(config, shard, wanted.spread)
    size = shard_size(config, shard, wanted.dtype, wanted.quantize, wanted.spread, sources)
    position = cache_bytes(config, shard, 1, kept)
    spans = (heads.start, heads.stop), (kv_heads.start, kv_heads.stop)
    return RankPlan(*spans, size.total_bytes, position, size)


def largest_context(config: ModelConfig, ranks: list[RankPlan], hosts: list[int], memory_bytes: int) -> int:
    """Return the longest context that one text can have where each host has so much memory, 0 for none.

    hosts: of each rank the number of its host.
    """
    longest = config.max_context
    for host in set(hosts):
        local = [rank for rank, its in zip(ranks, hosts, strict=True) if its == host]
        left = memory_bytes - sum(rank.total_bytes(0) for rank in local)
        longest = min(longest, left // sum(rank.position_bytes for rank in local))
    return max(0, longest)


def reduced_bytes(config: ModelConfig, points: str = "all") -> tuple[int, int]:
    """Return how many all-reduces a step has, and the bytes of one for each token: sums are fp32.

    points: as ExchangeSettings.synchronization_points.
    """
    return num_sums(config, points), config.width * ITEM_BYTES["float32"]
