"""Tell how a GGUF file wants positions to turn queries and keys, in the words of a Hugging Face config."""

from __future__ import annotations

from typing import Any

from ollampi.mpiruntime.gguf_metadata import Metadata

_KINDS = ("none", "linear", "yarn", "longrope")


def rope_values(meta: Metadata, head_dim: int) -> dict[str, Any]:
    """Return rope_theta and, where there are any, rope_scaling and partial_rotary_factor; raise ModelError.

    Llama 3.1's scaling is a tensor of divisors in GGUF (rope_freqs), which "longrope" says in a config.
    """
    turned = meta.whole("rope.dimension_count", head_dim)
    if turned % 2 or turned > head_dim or (turned != head_dim and meta.architecture != "phi3"):
        raise meta.wrong("rope.dimension_count", f"it must be the size of a head, {head_dim}; of phi3 an even part")
    values: dict[str, Any] = {"rope_theta": meta.number("rope.freq_base", 10000.0)}
    if turned != head_dim:
        values["partial_rotary_factor"] = turned / head_dim
    scaling = _scaling(meta, turned)
    return {**values, "rope_scaling": scaling} if scaling else values


def original_context(meta: Metadata) -> int:
    """Return the context that a model was trained with before it was made to read longer ones."""
    return meta.count("rope.scaling.original_context_length") or meta.whole("context_length")


def _scaling(meta: Metadata, turned: int) -> dict[str, Any] | None:
    """Return rope_scaling, or None where rope is plain."""
    tensors = meta.file.tensors
    original = original_context(meta)
    if "rope_factors_long.weight" in tensors:
        scaling = {
            "rope_type": "longrope",
            "long_factor": _divisors(meta, "rope_factors_long.weight", turned),
            "short_factor": _divisors(meta, "rope_factors_short.weight", turned),
            "original_max_position_embeddings": original,
        }
        magnitude = meta.optional("rope.scaling.attn_factor")
        return scaling if magnitude is None else {**scaling, "attention_factor": magnitude}
    if "rope_freqs.weight" in tensors:
        divisors = _divisors(meta, "rope_freqs.weight", turned)
        return {
            "rope_type": "longrope",
            "long_factor": divisors,
            "short_factor": divisors,
            "original_max_position_embeddings": meta.whole("context_length"),
            "attention_factor": 1.0,
        }
    kind = meta.text("rope.scaling.type", "linear")
    if kind not in _KINDS:
        raise meta.wrong("rope.scaling.type", f"known are: {', '.join(_KINDS)}")
    if kind == "longrope":
        raise meta.wrong("rope.scaling.type", "its factors are missing: tensor rope_factors_long.weight")
    factor = meta.optional("rope.scaling.factor") or meta.optional("rope.scale_linear")
    if kind == "none" or factor in (None, 1.0):
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if meta.number("rope.scaling.attn_factor", 1.0) != 1.0:
        raise meta.wrong("rope.scaling.attn_factor", "with yarn only 1 is supported")
    fast, slow = meta.number("rope.scaling.yarn_beta_fast", 32.0), meta.number("rope.scaling.yarn_beta_slow", 1.0)
    return {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": original,
        "beta_fast": fast,
        "beta_slow": slow,
    }


def _divisors(meta: Metadata, name: str, turned: int) -> list[float]:
    """Return by what the frequencies of the turned numbers of a head are divided."""
    divisors = meta.numbers(name)
    if len(divisors) != turned // 2:
        raise meta.wrong("rope.dimension_count", f"{turned // 2} pairs are turned, {name} has {len(divisors)} divisors")
    return divisors
