"""Tell in a few words what a model is: its family, its size, how its weights are kept."""

from __future__ import annotations

from collections import Counter
from typing import Any

from ollampi.mpiruntime.safetensors_header import TensorEntry

_FILE_TYPES = {  # llama.cpp's LLAMA_FTYPE
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M",
    13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 21: "Q2_K_S", 32: "BF16",
}  # fmt: skip


def positive(config: dict[str, Any], key: str, default: int) -> int:
    """Return a positive number of a config, or the default where it has none."""
    value = config.get(key)
    return value if type(value) is int and 0 < value < 2**31 else default


def details(config: dict[str, Any], text_config: dict[str, Any], tensors: list[TensorEntry]) -> dict[str, Any]:
    """Return the `details` object of /api/tags, /api/ps and /api/show."""
    family = config["model_type"]
    values, packed = Counter[str](), _packed(config)
    for tensor in tensors:
        if packed is None or tensor.dtype != "I32":
            values[tensor.dtype] += tensor.num_elements
        elif tensor.name.endswith(".qweight"):
            values[packed[0]] += tensor.num_elements * 32 // packed[1]
    dtype = values.most_common(1)[0][0] if values else ""
    return {
        "parent_model": "",
        "format": "safetensors",
        "family": family,
        "families": [family],
        "parameter_size": human_number(values.total()),
        "quantization_level": dtype or "unknown",
        "context_length": positive(text_config, "max_position_embeddings", 2048),
        "embedding_length": positive(text_config, "hidden_size", 0),
    }


def gguf_details(metadata: dict[str, Any], config: dict[str, Any], tensors: list[TensorEntry]) -> dict[str, Any]:
    """Return the `details` object for a GGUF file."""
    kind = metadata.get("general.file_type")
    level = _FILE_TYPES.get(kind) if type(kind) is int else None
    found = details(config, config, tensors)
    family = str(metadata["general.architecture"])
    told = {"format": "gguf", "family": family, "families": [family]}
    return {**found, **told, "quantization_level": level or found["quantization_level"]}


def _packed(config: dict[str, Any]) -> tuple[str, int] | None:
    """Return how words hold packed numbers, as "AWQ 4-bit", and the bits of one; None where they hold none."""
    told = config.get("quantization_config")
    method, bits = (told.get("quant_method"), told.get("bits")) if isinstance(told, dict) else (None, None)
    if not isinstance(method, str) or method not in ("awq", "gptq") or type(bits) is not int or not 2 <= bits <= 8:
        return None
    return f"{method.upper()} {bits}-bit", bits


def human_number(count: int) -> str:
    """Return a count as 5.6M or 8.0B."""
    for limit, letter in ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "K")):
        if count >= limit:
            return f"{count / limit:.1f}{letter}"
    return str(count)
