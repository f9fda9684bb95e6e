"""Say in the keys of a GGUF file what a model's config says: what gguf_config reads, written.

The keys are those that llama.cpp's converter writes (convert_hf_to_gguf.py). GGUF has no words for some of what a
config can say, so what was written is read again and compared.
"""

from __future__ import annotations

import math
import struct
from dataclasses import fields, replace
from typing import Any

from ollampi.mpiruntime.errors import ModelError
from ollampi.mpiruntime.gguf_config import gguf_config
from ollampi.mpiruntime.gguf_fields import Value
from ollampi.mpiruntime.gguf_header import GgufFile
from ollampi.mpiruntime.model_config import ModelConfig, parse_config
from ollampi.mpiruntime.rope import Rope

ARCHITECTURES = {
    "llama": "llama", "mistral": "llama", "mixtral": "llama", "qwen2": "qwen2", "qwen3": "qwen3",
    "qwen3_moe": "qwen3moe", "gemma": "gemma", "gemma2": "gemma2", "gemma3_text": "gemma3", "phi3": "phi3",
    "cohere": "command-r",
}  # fmt: skip
_WINDOWED = {"gemma2": 2, "gemma3": 6}  # all but every n-th layer have windows unless the file says which
_OWN = {"model_type", "names", "norm_offset", "dtype", "layers"}  # in what configs of one model may differ


def keys_of(config: ModelConfig, architecture: str) -> dict[str, Value]:
    """Return the values by key; raise ModelError for a rope that GGUF has no words for."""
    values: dict[str, Value] = {
        "vocab_size": config.vocab_size,
        "context_length": config.max_context,
        "embedding_length": config.width,
        "block_count": config.num_layers,
        "feed_forward_length": config.mlp_width,
        "attention.head_count": config.num_heads,
        "attention.head_count_kv": config.num_kv_heads,
        f"attention.layer_norm_{'rms_' if config.norm == 'rms' else ''}epsilon": config.norm_eps,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        **_windows(config, architecture),
        **_rope(config),
    }
    if config.experts is not None:
        values |= {"expert_count": config.experts.count, "expert_used_count": config.experts.per_token}
        if architecture == "qwen3moe":
            own = {"expert_feed_forward_length": config.experts.width, "norm_top_k_prob": config.experts.normalised}
            values |= own
    if architecture == "command-r":
        values["logit_scale"] = config.logit_scale
    if architecture == "gemma2":
        values["attn_logit_softcapping"] = config.attention_cap or 0.0
    if architecture == "gemma2" or config.logit_cap:
        values["final_logit_softcapping"] = config.logit_cap or 0.0
    return {f"{architecture}.{key}": value for key, value in values.items()}


def rope_tensors(config: ModelConfig) -> dict[str, list[float]]:
    """Return the divisors of frequencies, which are tensors in GGUF, by name."""
    rope = _everywhere(config)
    if rope.kind == "longrope":
        return {
            "rope_factors_long.weight": list(rope.long_factors),
            "rope_factors_short.weight": list(rope.short_factors),
        }
    return {"rope_freqs.weight": _llama3_divisors(rope)} if rope.kind == "llama3" else {}


def check_config(config: ModelConfig, file: GgufFile, source: str) -> None:
    """Raise ModelError with the field unless what a file says is the config; the divisors of rope need not be in it."""
    found = parse_config(gguf_config(file), source)
    for field in fields(ModelConfig):
        if field.name not in _OWN:
            _compare(field.name, getattr(config, field.name), getattr(found, field.name), source)
    for number, (ours, theirs) in enumerate(zip(config.layers, found.layers, strict=True)):
        if ours.rope is not None and ours.rope.kind in ("llama3", "longrope"):
            ours = replace(ours, rope=Rope(ours.rope.dim, ours.rope.theta))
        for field in fields(ours):
            told = f"{field.name} of layer {number}"
            _compare(told, getattr(ours, field.name), getattr(theirs, field.name), source)


def _compare(name: str, ours: Any, theirs: Any, source: str) -> None:
    if _single(ours) != _single(theirs):
        raise ModelError(
            f"{source}: {name} is {ours!s:.200}, and a GGUF file of this family can only say {theirs!s:.200};"
            " serve the folder as it is"
        )


def _single(value: Any) -> Any:
    """Return a value with its numbers as fp32 has them, which GGUF files hold."""
    if isinstance(value, float):
        return struct.unpack("f", struct.pack("f", value))[0]
    if isinstance(value, Rope):
        return tuple(_single(getattr(value, field.name)) for field in fields(Rope))
    return value


def _everywhere(config: ModelConfig) -> Rope:
    """Return the rope of layers without a window, where there are any."""
    ropes = [layer.rope for layer in config.layers if layer.window is None] or [config.layers[-1].rope]
    rope = ropes[-1]
    assert rope is not None  # which only encoders have none of
    return rope


def _windows(config: ModelConfig, architecture: str) -> dict[str, Value]:
    """Return how far layers see, and which of them."""
    everywhere = _everywhere(config)
    windowed = [layer.window is not None or layer.rope != everywhere for layer in config.layers]
    values: dict[str, Value] = {}
    window = next((layer.window for layer in config.layers if layer.window is not None), None)
    if window is not None:
        values["attention.sliding_window"] = window
    every = _WINDOWED.get(architecture)
    if every is not None and windowed != [(i + 1) % every != 0 for i in range(len(windowed))]:
        values["attention.sliding_window_pattern"] = list(windowed)
    local = next((layer.rope for layer in config.layers if layer.rope != everywhere), None)
    if architecture == "gemma3":
        values["rope.freq_base_swa"] = everywhere.theta if local is None else local.theta
    return values


def _rope(config: ModelConfig) -> dict[str, Value]:
    """Return how positions turn queries and keys."""
    rope = _everywhere(config)
    values: dict[str, Value] = {"rope.dimension_count": rope.dim, "rope.freq_base": rope.theta}
    if rope.kind == "dynamic":
        raise ModelError("config.json: rope type 'dynamic' has no place in a GGUF file; serve the folder as it is")
    if rope.kind in ("linear", "yarn"):
        values |= {"rope.scaling.type": rope.kind, "rope.scaling.factor": rope.factor}
    if rope.kind in ("yarn", "longrope"):
        values["rope.scaling.original_context_length"] = rope.original_context
    if rope.kind == "yarn" and (rope.beta_fast, rope.beta_slow) != (32.0, 1.0):
        values |= {"rope.scaling.yarn_beta_fast": rope.beta_fast, "rope.scaling.yarn_beta_slow": rope.beta_slow}
    if rope.kind == "longrope":
        values["rope.scaling.attn_factor"] = rope.magnitude
    return values


def _llama3_divisors(rope: Rope) -> list[float]:
    """Return by what each frequency is divided: mpiruntime.rotary has the formula."""
    divisors = []
    for pair in range(rope.dim // 2):
        turns = rope.original_context * rope.theta ** (-2 * pair / rope.dim) / (2 * math.pi)
        kept = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
        kept = min(max(kept, 0.0), 1.0)
        divisors.append(1 / (kept + (1 - kept) / rope.factor))
    return divisors
