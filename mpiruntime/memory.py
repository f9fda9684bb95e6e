"""Count the bytes that a rank will hold, from the config alone."""

from __future__ import annotations

from ollampi.mpiruntime.model_config import ModelConfig
from ollampi.mpiruntime.shard import GROUP, Shard

ITEM_BYTES = {"float32": 4, "bfloat16": 2}
SCALE_BYTES = 2  # of each vector that the cache keeps in 8 bits
RUNTIME_BYTES = 256 << 20  # what a rank takes beside weights and cache: buffers of a step, kernels made at run time


def shard_parameters(config: ModelConfig, shard: Shard) -> int:
    """Return how many weights the rank of `shard` holds: its part of every matrix, and the norms whole."""
    heads, kv_heads = shard.heads(config.num_heads, config.num_kv_heads)
    q, kv = len(heads) * config.head_dim, len(kv_heads) * config.head_dim
    mlp_width = len(shard.of(config.mlp_width, unit=GROUP))
    attention = config.width * (2 * q + 2 * kv) + config.attention_bias * (q + 2 * kv + config.width)
    mlp = 3 * config.width * mlp_width + config.mlp_bias * (2 * mlp_width + config.width)
    tables = len(shard.of(config.vocab_size)) * config.width * config.num_tables
    return config.num_layers * (attention + mlp + 2 * config.width) + tables + config.width


def cache_bytes(config: ModelConfig, shard: Shard, num_tokens: int, kept: str) -> int:
    """Return the bytes of keys and values of num_tokens positions on the rank of `shard`, kept as kv_cache does."""
    _, kv_heads = shard.heads(config.num_heads, config.num_kv_heads)
    vector = config.head_dim + SCALE_BYTES if kept == "int8" else config.head_dim * ITEM_BYTES[kept]
    return 2 * config.num_layers * num_tokens * len(kv_heads) * vector


def human(size_bytes: int) -> str:
    """Return a size with three digits and its unit, such as "1.50 GiB"."""
    size, units = float(size_bytes), ["B", "KiB", "MiB", "GiB", "TiB"]
    while size >= 1000 and len(units) > 1:
        size, units = size / 1024, units[1:]
    return f"{size:.0f} {units[0]}" if units[0] == "B" else f"{size:.3g} {units[0]}"
