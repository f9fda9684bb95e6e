"""Say what a model will take on each rank, before anything of it is read."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ollampi.mpiruntime.communicator import Single
from ollampi.mpiruntime.decoder import Cut, Decoder
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
    return shard_bytes(config, Shard(0, 1), "float32") // 4
