"""Write a Llama checkpoint as the GGUF file that llama.cpp reads: fp32, BF16, Q8_0 or Q4_0."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from ollampi.mpiruntime.gguf_tensors import interleaved
from ollampi.mpiruntime.model_config import ModelConfig, read_config

KINDS = {
    "fp32": gguf.GGMLQuantizationType.F32,
    "bf16": gguf.GGMLQuantizationType.BF16,
    "q8": gguf.GGMLQuantizationType.Q8_0,
    "q4": gguf.GGMLQuantizationType.Q4_0,
}


def export(folder: Path, kind: str, into: Path) -> Path:
    """Return the file in `into` with all matrices of the model in one kind and norms in fp32; made unless it is there.

    It has no tokenizer: prompts are tokens.
    """
    path = into / f"{folder.name}-{kind}.gguf"
    if path.is_file():
        return path
    into.mkdir(parents=True, exist_ok=True)
    making = path.with_suffix(".part")
    writer = gguf.GGUFWriter(making, "llama")
    config = read_config(folder)
    _add_shape(writer, config)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_layers)
    with safe_open(folder / "model.safetensors", "pt") as checkpoint:
        for name in checkpoint.keys():  # noqa: SIM118, safe_open is no mapping
            values = _as_llama_cpp(name, checkpoint.get_tensor(name).float().numpy(), config)
            stored = KINDS[kind if values.ndim == 2 else "fp32"]
            packed = gguf.quants.quantize(values, stored)
            theirs = names.get_name(name, try_suffixes=(".weight",))
            if theirs is None:
                raise ValueError(f"llama.cpp has no name for {name}; take a plain Llama checkpoint")
            writer.add_tensor(theirs, packed, raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return making.rename(path)


def _add_shape(writer: gguf.GGUFWriter, config: ModelConfig) -> None:
    """Write what config.json says; raise ValueError for what this export does not know."""
    rope = config.layers[0].rope
    if rope is None or rope.kind != "default" or config.qkv_bias or config.mlp_bias:
        raise ValueError("rope scaling and biases are not exported; take a model without")
    writer.add_block_count(config.num_layers)
    writer.add_context_length(config.max_context)
    writer.add_embedding_length(config.width)
    writer.add_feed_forward_length(config.mlp_width)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(rope.theta)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("none")


def _as_llama_cpp(name: str, values: NDArray[np.float32], config: ModelConfig) -> NDArray[np.float32]:
    """Return a tensor with its rows as llama.cpp expects them."""
    heads = {"q_proj": config.num_heads, "k_proj": config.num_kv_heads}.get(name.split(".")[-2])
    return values if heads is None else interleaved(values, heads)
