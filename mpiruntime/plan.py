"""Say what a model will take on each rank, before anything of it is read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ollampi.mpiruntime.communicator import Single
from ollampi.mpiruntime.decoder import Cut, Decoder
from ollampi.mpiruntime.memory import ITEM_BYTES, RUNTIME_BYTES, cache_bytes, check_groups, is_quantised
from ollampi.mpiruntime.model_config import ModelConfig
from ollampi.mpiruntime.shard import Shard
from ollampi.mpiruntime.source import Source
from ollampi.mpiruntime.weights import Counted


def shard_bytes(
    config: ModelConfig,
    shard: Shard,
    dtype: str,
    quantize: str = "none",
    spread: bool = False,
    sources: Mapping[str, Source] | None = None,
) -> int:
    """Return the bytes of weights of the rank of `shard`: what its decoder would hold, built of tensors without memory.

    dtype: float32 or bfloat16; spread: experts are dealt out whole; sources: the tensors of the checkpoint where there
    is one. Raise CheckpointError where these are not what the config wants.
    """
    weights = Counted(getattr(torch, dtype), quantize=quantize, sources=sources)
    return Decoder(weights, config, Cut(shard, Single(), spread), context=0).size_bytes


def num_parameters(config: ModelConfig) -> int:
    """Return the number of weights of a model, tied ones once."""
    weights = Counted(torch.float32)
    return sum(math.prod(t.shape) for t in Decoder(weights, config, Cut(Shard(0, 1), Single()), context=0).tensors())


@dataclass(frozen=True)
class RankPlan:
    """What one rank will hold: query and KV heads as [first, last), bytes of weights, and of the cache per position."""

    heads: tuple[int, int]
    kv_heads: tuple[int, int]
    weight_bytes: int
    position_bytes: int

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
    ranks = []
    kept = wanted.dtype if wanted.cache_dtype == "auto" else wanted.cache_dtype
    for shard in Shard(0, wanted.size).others():
        if is_quantised(wanted.quantize, sources):
            check_groups(config, shard, wanted.spread)
        heads, kv_heads = shard.heads(config.num_heads, config.num_kv_heads)
        weights = shard_bytes(config, shard, wanted.dtype, wanted.quantize, wanted.spread, sources)
        position = cache_bytes(config, shard, 1, kept)
        ranks.append(RankPlan((heads.start, heads.stop), (kv_heads.start, kv_heads.stop), weights, position))
    return ranks


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


def reduced_bytes(config: ModelConfig) -> tuple[int, int]:
    """Return how many all-reduces a step has, and the bytes of one for each token: sums are fp32."""
    return 1 + 2 * config.num_layers, config.width * ITEM_BYTES["float32"]
