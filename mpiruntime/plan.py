"""Say what a model will take on each rank, from its config alone."""

from __future__ import annotations

import torch

from ollampi.mpiruntime.communicator import Single
from ollampi.mpiruntime.decoder import Cut, Decoder
from ollampi.mpiruntime.model_config import ModelConfig
from ollampi.mpiruntime.shard import Shard
from ollampi.mpiruntime.weights import Counted


def shard_bytes(config: ModelConfig, shard: Shard, dtype: str, bits: int | None, spread: bool = False) -> int:
    """Return the bytes of weights of the rank of `shard`: what its decoder would hold, built of tensors without memory.

    dtype: float32 or bfloat16; bits: of quantised matrices, None for plain ones; spread: experts are dealt out whole.
    """
    weights = Counted(getattr(torch, dtype), bits=bits)
    return Decoder(weights, config, Cut(shard, Single(), spread), context=0).size_bytes


def num_parameters(config: ModelConfig) -> int:
    """Return the number of weights of a model, tied ones once."""
    return shard_bytes(config, Shard(0, 1), "float32", None) // 4
