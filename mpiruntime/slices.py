"""Read a rank's slice of a model, and tell before what it would take."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from ollampi.kernels import pages
from ollampi.kernels.choice import Choice
from ollampi.kernels.quantised import Quantised
from ollampi.mpiruntime.background import Background
from ollampi.mpiruntime.checkpoint import Checkpoint, open_checkpoint
from ollampi.mpiruntime.decoder import Decoder
from ollampi.mpiruntime.decoder_layer import Cut
from ollampi.mpiruntime.groups import Group
from ollampi.mpiruntime.kv_cache import KVCache
from ollampi.mpiruntime.load_report import LoadReport
from ollampi.mpiruntime.meters import ModelMeter
from ollampi.mpiruntime.model_config import ModelConfig, is_idle, paired_heads, read_config
from ollampi.mpiruntime.overlap import Halving
from ollampi.mpiruntime.placement import Placement
from ollampi.mpiruntime.reading import Reading
from ollampi.mpiruntime.residence import closed_on_error
from ollampi.mpiruntime.shard import Shard
from ollampi.mpiruntime.shard_file import ShardFile, shard_path
from ollampi.mpiruntime.step import Load
from ollampi.mpiruntime.stepping import Steps
from ollampi.mpiruntime.streaming import key_of, residence
from ollampi.mpiruntime.synchronization import sums_once
from ollampi.mpiruntime.weights import Loaded

_NOT_KEPT = "load=scatter keeps no quantised weights in the folder of cache=; use load=slices to keep them"


@dataclass(frozen=True)
class Slice:
    """One model on this rank, as one of a group."""

    group: Group
    decoder: Decoder
    cache: KVCache
    meter: ModelMeter
    steps: Steps


@dataclass(frozen=True)
class Reader:
    """What this rank reads its slice with, in any thread. rank: of the world; overlap: as ExchangeSettings.overlap."""

    rank: int
    group: Group
    place: Placement
    choice: Choice
    meter: ModelMeter
    overlap: str
    progress: Callable[[str, int, int], None]
    background: Background

    def read(self, load: Load, reading: Reading) -> tuple[Slice, LoadReport]:
        """Return the slice with an empty cache, and what it takes.

        Raise ModelError, OSError, and Damaged for a file that can be written anew.
        """
        began = time.monotonic()
        config = read_config(Path(load.path))
        checkpoint = open_checkpoint(Path(load.path), load.adapters, paired_heads(config))
        checkpoint.reading, checkpoint.progress = reading, partial(self.progress, load.name)
        dtype = getattr(torch, load.dtype)
        how = self.place.arithmetic(load, self.choice, config)
        shard, meter = self.group.shard, self.meter
        shards = _shards(load, checkpoint, shard, self.background.pause)
        joint = sums_once(config, load.points, load.deterministic)
        cut = Cut(shard, meter.comm, meter.sums, load.experts == "spread", joint)
        place = residence(load, checkpoint, config, shard)
        form = dtype, how, load.quantize, checkpoint.sources, "", place, self.place.device
        kept = Loaded(*form, checkpoint=checkpoint, shards=shards)
        with closed_on_error(place):
            decoder = Decoder(kept, config, cut, load.context)
            checkpoint.finish()
            cache = _cache(config, load, shard, self.place)
            steps = self.place.steps(decoder, cache, Halving(self.overlap, self.group.facts))
            if shards is not None and shards.incomplete and shards.key == key_of(checkpoint):
                shards.save()  # else the checkpoint changed meanwhile
        heads, kv_heads = shard.heads(config.num_heads, config.num_kv_heads)
        report = LoadReport(
            rank=self.rank,
            heads=(heads.start, heads.stop),
            kv_heads=(kv_heads.start, kv_heads.stop),
            weight_bytes=decoder.size_bytes,
            cache_bytes=cache.size_bytes,
            read_bytes=reading.bytes_read + (shards.bytes_read if shards else 0),
            unread=sorted(name for name in checkpoint.unread if not is_idle(config, name)),
            seconds=time.monotonic() - began,
            formats=decoder.formats,
            device=str(self.place.device),
            note=shards.note if shards else _NOT_KEPT if load.shard_cache and load.load == "scatter" else "",
            step_bytes=place.step_bytes,
            halves=steps.halves,
        )
        return Slice(self.group, decoder, cache, meter, steps), report


def release(model: Slice) -> None:
    """Free what a slice holds, which nobody uses any more; not all of its memory at once."""
    model.decoder.residence.close()  # waits for what is being read ahead
    kept = [model.cache.keys.kept, model.cache.values.kept]
    for matrix in model.decoder.tensors():
        for tensor in (matrix.weights, matrix.scales) if isinstance(matrix, Quantised) else (matrix,):
            pages.drop(tensor)
    for tensor in [tensor for each in kept for tensor in (each.vectors, each.scales) if tensor is not None]:
        pages.drop(tensor)


def _shards(load: Load, checkpoint: Checkpoint, shard: Shard, pause: Callable[[], None]) -> ShardFile | None:
    """Return where this rank's quantised matrices are kept, or None for nowhere."""
    if load.shard_cache is None or load.quantize == "none" or load.load == "scatter":
        return None
    form = f"{load.quantize}-ends" if load.num_streamed else load.quantize  # layers have a file of their own then
    path = shard_path(load.shard_cache, checkpoint.folder, form, shard.rank, shard.size, checkpoint.adapters)
    return ShardFile(path, key_of(checkpoint), pause)


def _cache(config: ModelConfig, load: Load, shard: Shard, place: Placement) -> KVCache:
    """Return an empty cache for this rank's KV heads."""
    _, kv_heads = shard.heads(config.num_heads, config.num_kv_heads)
    sizes = config.num_layers, load.num_blocks, load.block_size, len(kv_heads), config.head_dim
    return KVCache(*sizes, getattr(torch, load.dtype), load.kept, place.device, spare=place.gpu is not None)
