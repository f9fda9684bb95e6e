"""Hold what memory and batching of an engine depend on; the `engine` part of the configuration."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class EngineSettings:
    """Memory and batching.

    dtype: auto, float32 or bfloat16; context_length: of a model unless a request asks for another; cache_tokens:
    positions of the KV cache, shared by all requests, None for as many as are of use and fit into cache_fraction of the
    memory that is left beside the weights; cache_dtype: float32, bfloat16, int8, or auto for that of the model;
    max_step_tokens: tokens in one forward pass; max_running, max_queue: requests; max_stretch: how many times as long a
    step may take where prompts join running answers; max_drafts: tokens that are proposed for one answer in a step,
    None as in HostedModel.max_drafts; timeout_s: after which a request ends with an error, None for never;
    keep_alive_s: how long an idle model stays, negative for ever, None for KEEP_ALIVE_S; load_timeout_s: how long a
    load may bring no byte before the job ends, None for ever; deterministic: the same bits in any batch and world, at a
    price (docs/determinism.md); quantize: none, q8, q4, or auto for what the checkpoint has; shard_cache: the folder
    that keeps quantised weights, None for nowhere (docs/quantization.md); experts: cut, or spread whole over the ranks;
    load: slices, where each rank reads its part of the files, or scatter, where rank 0 reads all; stream: auto, never
    or always: whether layers are read in every step from a file in shard_cache, auto those for which there is no
    memory; prefetch_factor: how many ahead.
    """

    dtype: str = "auto"
    context_length: int = 4096
    cache_tokens: int | None = None
    cache_fraction: float = 0.5
    cache_dtype: str = "auto"
    block_size: int = 16
    max_step_tokens: int = 512
    max_running: int = 256
    max_stretch: float = 1.25
    max_drafts: int | None = None
    max_queue: int = 512
    max_loaded_models: int = 3
    timeout_s: float | None = None
    keep_alive_s: float | None = None
    load_timeout_s: float | None = None
    deterministic: bool = False
    quantize: str = "auto"
    shard_cache: str | None = None
    experts: str = "cut"
    load: str = "slices"
    stream: str = "auto"
    prefetch_factor: int = 2
