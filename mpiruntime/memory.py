"""Count the bytes that a rank will hold, from the config alone."""

from __future__ import annotations

from ollampi.kernels.groups import GROUP
from ollampi.kernels.quantised import stored_bytes
from ollampi.mpiruntime.errors import ModelError
from ollampi.mpiruntime.model_config import ModelConfig
from ollampi.mpiruntime.shard import Shard

ITEM_BYTES = {"float32": 4, "bfloat16": 2}
SCALE_BYTES = 2  # of each vector that the cache keeps in 8 bits
RUNTIME_BYTES = 256 << 20  # what a rank takes beside weights and cache: buffers of a step, kernels made at run time


BITS = {"none": None, "q8": 8, "q4": 4}  # of the weights of matrices, by the name of the format


def shard_bytes(config: ModelConfig, shard: Shard, dtype: str, bits: int | None) -> int:
    """Return the bytes of weights of the rank of `shard`: its part of every matrix; norms and some biases whole."""
    heads, kv_heads = shard.heads(config.num_heads, config.num_kv_heads)
    q, kv = len(heads) * config.head_dim, len(kv_heads) * config.head_dim
    mlp, width = len(shard.of(config.mlp_width, unit=GROUP)), config.width

    def matrix(num_rows: int, num_columns: int) -> int:
        """Return the bytes of a matrix."""
        if bits is None:
            return num_rows * num_columns * ITEM_BYTES[dtype]
        return stored_bytes(num_rows, num_columns, bits)

    layer = matrix(q + 2 * kv, width) + matrix(width, q) + matrix(2 * mlp, width) + matrix(width, mlp)
    vectors = 2 * width + config.attention_bias * (q + 2 * kv + width) + config.mlp_bias * (2 * mlp + width)
    tables = config.num_tables * matrix(len(shard.of(config.vocab_size)), width)
    return config.num_layers * (layer + vectors * ITEM_BYTES[dtype]) + tables + width * ITEM_BYTES[dtype]


def check_groups(config: ModelConfig, shard: Shard) -> None:
    """Raise ModelError where this rank's part of an input begins within a group of quantised weights."""
    heads, _ = shard.heads(config.num_heads, config.num_kv_heads)
    begins = heads.start * config.head_dim, shard.of(config.mlp_width, unit=GROUP).start
    if any(begin % GROUP for begin in begins):
        raise ModelError(
            f"{shard.size} ranks cut {config.num_heads} heads of {config.head_dim} numbers and an MLP of"
            f" {config.mlp_width} within groups of {GROUP}, which quantised weights share scales in;"
            " use fewer ranks, or quantize=none"
        )


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
