"""Tell what a load needs on one rank, from the headers of its files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ollampi.mpiruntime.checkpoint import open_checkpoint
from ollampi.mpiruntime.memory import RUNTIME_BYTES, cache_bytes, check_groups, is_quantised
from ollampi.mpiruntime.model_config import ModelConfig, paired_heads, read_config
from ollampi.mpiruntime.plan import shard_size
from ollampi.mpiruntime.same_files import digests
from ollampi.mpiruntime.shard import Shard
from ollampi.mpiruntime.step import Check
from ollampi.mpiruntime.streaming import weight_sizes


@dataclass(frozen=True)
class Needed:
    """What a load takes, and the files that it is read from, as in cache_size.RankMemory."""

    fixed_bytes: list[int]
    block_bytes: int
    files: dict[str, str]


def needed(check: Check, shard: Shard, on_gpu: bool, allow: Callable[[ModelConfig], object]) -> Needed:
    """Return what a model and its drafts need on the rank of `shard`, on a GPU or not.

    allow: raises ModelError for a model that cannot be computed as wanted. Raise ModelError where it does, and where
    config or file headers are damaged.
    """
    fixed, block, files = [0], 0, dict[str, str]()
    for path, adapters in ((check.path, check.adapters), *((path, []) for path in check.drafts)):
        config, spread = read_config(Path(path)), check.experts == "spread"
        checkpoint = open_checkpoint(Path(path), adapters, paired_heads(config))
        sources = checkpoint.sources
        allow(config)
        if is_quantised(check.quantize, sources):
            check_groups(config, shard, spread)
        size = shard_size(config, shard, check.dtype, check.quantize, spread, sources)
        own = weight_sizes(check, size, on_gpu) if path == check.path else [size.total_bytes]
        fixed = [a + b + RUNTIME_BYTES for a in fixed for b in own]  # the first of several models may be streamed
        block += cache_bytes(config, shard, check.block_size, check.kept)
        files |= digests(checkpoint.folder, checkpoint.files, checkpoint.adapters)
    return Needed(fixed, block, files)
