"""Decide whether a load can stream layers, and make what streams them on a rank."""

from __future__ import annotations

from hashlib import blake2b

from ollampi.mpiruntime.checkpoint import Checkpoint
from ollampi.mpiruntime.errors import ModelError
from ollampi.mpiruntime.layout import Layout
from ollampi.mpiruntime.model_config import ModelConfig
from ollampi.mpiruntime.plan import ShardSize, shard_size
from ollampi.mpiruntime.residence import InMemory, Residence, Streamed
from ollampi.mpiruntime.shard import Shard
from ollampi.mpiruntime.shard_file import checkpoint_key, shard_path
from ollampi.mpiruntime.step import Check, Load

_HOW = "stream=auto cache=FOLDER, which reads layers from a file in FOLDER in every step"


def weight_sizes(check: Check, size: ShardSize, on_gpu: bool = False) -> list[int]:
    """Return the bytes of weights of a rank with no layer streamed, with one, and so on, as far as the load allows.

    on_gpu: whether the rank computes there. Raise ModelError where all are to be streamed and cannot be.
    """
    if check.stream == "always" and on_gpu:
        raise ModelError("stream=always cannot be had on GPUs, which keep all weights; use device=cpu, or stream=never")
    if check.stream == "always" and (why := _why_not(check)):
        raise ModelError(f"stream=always cannot be had with {why}; use stream=always cache=FOLDER load=slices")
    most = 0 if on_gpu or check.stream == "never" or _why_not(check) else len(size.layout)
    return [size.held_bytes(count, check.prefetch_factor) for count in range(most + 1)]


def remedy(check: Check, on_gpu: bool = False) -> str:
    """Return what else helps where a model does not fit into memory, to end a sentence with."""
    if on_gpu:
        return f"; or use device=cpu {_HOW}"
    if check.stream == "never":
        return f"; or use {_HOW}"
    if why := _why_not(check):
        return f"; or use {_HOW}, in the place of {why}"
    return ", or a smaller exchange.prefetch_factor" if check.prefetch_factor else ""


def residence(load: Load, checkpoint: Checkpoint, config: ModelConfig, shard: Shard) -> Residence:
    """Return where the layers of a load are on this rank.

    Raise Damaged, and OSError where the file that they are read from cannot be opened.
    """
    if not load.num_streamed:
        return InMemory()
    size = shard_size(config, shard, load.dtype, load.quantize, load.experts == "spread", checkpoint.sources)
    assert load.shard_cache is not None
    form = "-".join([load.quantize, load.dtype, *(["exact"] if load.deterministic else []), load.experts, "layers"])
    path = shard_path(load.shard_cache, checkpoint.folder, form, shard.rank, shard.size, checkpoint.adapters)
    planned = size.schedule(load.num_streamed, load.prefetch_factor)
    return Streamed(planned, size.layout, path, lambda: _key(checkpoint, size.layout))


def key_of(checkpoint: Checkpoint) -> str:
    """Return what a file made of a checkpoint is known by."""
    return checkpoint_key(checkpoint.folder, checkpoint.files, checkpoint.adapters)


def _key(checkpoint: Checkpoint, layout: Layout) -> str:
    """Return what a file of layers is known by: the checkpoint, and which matrices lie where."""
    return f"{key_of(checkpoint)}-{blake2b(repr(layout).encode(), digest_size=8).hexdigest()}"


def _why_not(load: Load) -> str:
    """Return the setting for which no layer can be streamed, "" where there is none."""
    if load.shard_cache is None:
        return "cache=null"
    return "load=scatter" if load.load == "scatter" else ""
