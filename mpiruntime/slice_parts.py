"""Make what a rank needs beside its weights: the cache, and the file in which quantised matrices are kept."""

from __future__ import annotations

import torch

from ollampi.mpiruntime.checkpoint import Checkpoint
from ollampi.mpiruntime.kv_cache import KVCache
from ollampi.mpiruntime.model_config import ModelConfig
from ollampi.mpiruntime.placement import Placement
from ollampi.mpiruntime.shard import Shard
from ollampi.mpiruntime.shard_file import ShardFile, shard_path
from ollampi.mpiruntime.step import Load
from ollampi.mpiruntime.streaming import key_of


def kept_shards(load: Load, checkpoint: Checkpoint, shard: Shard) -> ShardFile | None:
    """Return where a rank's quantised matrices are kept, or None for nowhere."""
    if load.shard_cache is None or load.quantize == "none" or load.load == "scatter":
        return None
    form = f"{load.quantize}-ends" if load.num_streamed else load.quantize  # layers have a file of their own then
    path = shard_path(load.shard_cache, checkpoint.folder, form, shard.rank, shard.size, checkpoint.adapters)
    return ShardFile(path, key_of(checkpoint))


def empty_cache(load: Load, config: ModelConfig, shard: Shard, place: Placement, dtype: torch.dtype) -> KVCache:
    """Return an empty cache for the KV heads of a rank."""
    _, kv_heads = shard.heads(config.num_heads, config.num_kv_heads)
    sizes = config.num_layers, load.num_blocks, load.block_size, len(kv_heads), config.head_dim
    return KVCache(*sizes, dtype, load.kept, place.device, spare=place.gpu is not None)
