"""Count the bytes that a rank will hold, from the config alone."""

from __future__ import annotations

from collections.abc import Mapping

from ollampi.kernels.groups import GROUP
from ollampi.mpiruntime.errors import ModelError
from ollampi.mpiruntime.model_config import ModelConfig
from ollampi.mpiruntime.shard import Shard
from ollampi.mpiruntime.source import DTYPES, Source

ITEM_BYTES = {"float32": 4, "bfloat16": 2}
SCALE_BYTES = 2  # of each vector that the cache keeps in 8 bits
RUNTIME_BYTES = 256 << 20  # what a rank takes beside weights and cache: buffers of a step, kernels made at run time


BITS = {"q8": 8, "q4": 4}  # of the weights of matrices, by the name of the format


def is_quantised(quantize: str, sources: Mapping[str, Source] | None) -> bool:
    """Return whether any matrix of a checkpoint will be quantised; quantize as in a Load."""
    own = sources is not None and any(source.kind not in DTYPES for source in sources.values())
    return quantize in BITS or (quantize == "auto" and own)


def check_groups(config: ModelConfig, shard: Shard, spread: bool) -> None:
    """Raise ModelError where this rank's part of an input begins within a group of quantised weights.

    spread: experts are dealt out whole.
    """
    heads, _ = shard.heads(config.num_heads, config.num_kv_heads)
    widths = {config.mlp_width}
    if config.experts is not None and not spread:
        widths.add(config.experts.width)
    begins = [heads.start * config.head_dim, *(shard.of(width, unit=GROUP).start for width in widths)]
    if any(begin % GROUP for begin in begins):
        raise ModelError(
            f"{shard.size} ranks cut {config.num_heads} heads of {config.head_dim} numbers and MLPs of"
            f" {' and '.join(map(str, sorted(widths)))} within groups of {GROUP}, which quantised weights share scales"
            " in; use fewer ranks, or quantize=none"
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
