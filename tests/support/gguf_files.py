"""Write a Hugging Face checkpoint as the GGUF file that llama.cpp's converter would make of it.

Names come from the gguf package's own table, TensorNameMap; keys and what is changed in tensors are the converter's
(llama.cpp, convert_hf_to_gguf.py).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from transformers import AutoConfig, PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from ollampi.mpiruntime.gguf_keys import ARCHITECTURES as DECODERS
from ollampi.mpiruntime.gguf_tensors import interleaved
from support.checkpoints import ENCODERS, FAMILIES
from support.gguf_blocks import blocks, numbers

ARCHITECTURES = {**DECODERS, "bert": "bert"}
# The models of support.checkpoints as far as GGUF has words for what they are, and what Gemma 2 is in its largest size.
_NOT_IN_GGUF = {"dynamic_rope", "cohere_biases", "phi", "phi_grouped"}
MODELS = {
    **{name: changes for name, changes in {**FAMILIES, **ENCODERS}.items() if name not in _NOT_IN_GGUF},
    "qwen2": {"model_type": "qwen2"},
    "qwen3_moe": {**FAMILIES["qwen3_moe"], "mlp_only_layers": []},
    "cohere": {**FAMILIES["cohere"], "logit_scale": 0.3125},  # which fp32 has
    "cohere_plus": {**FAMILIES["cohere_plus"], "tie_word_embeddings": True},
    "gemma2_27b": {**FAMILIES["gemma2"], "num_hidden_layers": 46, "query_pre_attn_scalar": 8},
    "gemma2": {**FAMILIES["gemma2"], "query_pre_attn_scalar": 16},
    "gemma3": {**FAMILIES["gemma3"], "query_pre_attn_scalar": 16},
}
_EXPERT = re.compile(r"(.*\.experts)\.(\d+)(\..*)")


def write_gguf(
    path: Path, folder: Path, kind: str = "F32", extra: dict[str, Any] | None = None, seed: int = 0, part: int = 0
) -> dict[str, torch.Tensor]:
    """Write the checkpoint in `folder` as one file; return what its tensors hold, by their Hugging Face names.

    kind: of matrices whose rows are whole blocks, all else is F32. Types that the gguf package cannot make get random
    numbers. extra: further keys, a tokenizer's for example; each value is written in the type that fits it. part: how
    many tensors each file of a split one has, where it shall be split.
    """
    config = AutoConfig.from_pretrained(folder)
    architecture = ARCHITECTURES[config.model_type]
    writer = gguf.GGUFWriter(path, architecture, split_max_tensors=part)
    _add_shape(writer, config)
    for key, value in (extra or {}).items():
        add_value(writer, key, value)
    state: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        state.update(load_file(file))
    held = _add_tensors(writer, config, state, kind, np.random.default_rng(seed))
    for name, divisors in _rope_tensors(config).items():
        writer.add_tensor(name, divisors)
    finish(writer)
    return held


def finish(writer: gguf.GGUFWriter) -> None:
    """Write the file."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_value(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    """Add a key with a value of Python: whole numbers as uint32, or int32 where one is below 0, others as float32."""
    kinds = gguf.GGUFValueType

    def kind_of(one: Any) -> gguf.GGUFValueType:
        if isinstance(one, int) and not isinstance(one, bool):
            return kinds.INT32 if one < 0 else kinds.UINT32
        return kinds.FLOAT32 if isinstance(one, float) else kinds.get_type(one)

    if isinstance(value, list):
        writer.add_key_value(key, value, kinds.ARRAY, kind_of(min(value) if isinstance(value[0], int) else value[0]))
    else:
        writer.add_key_value(key, value, kind_of(value))


def _separated(rows: NDArray[np.float32], num_heads: int) -> NDArray[np.float32]:
    """Undo `interleaved`."""
    pairs = rows.reshape(num_heads, -1, 2, *rows.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows.shape)


def _add_tensors(
    writer: gguf.GGUFWriter,
    config: PreTrainedConfig,
    state: dict[str, torch.Tensor],
    kind: str,
    rng: np.random.Generator,
) -> dict[str, torch.Tensor]:
    """Add all tensors, those of experts as one for each layer; return what they hold."""
    architecture = ARCHITECTURES[config.model_type]
    arch = next(each for each, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    held: dict[str, torch.Tensor] = {}
    for merged, parts in _merged(state, config).items():
        theirs = names.get_name(merged, try_suffixes=(".weight", ".bias"))
        assert theirs is not None, merged
        values = np.stack([state[part].float().numpy() for part in parts])
        values = values[0] if parts == [merged] else values
        heads = 0
        if architecture == "llama" and ".self_attn." in merged:
            heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(
                merged.split(".")[-2], 0
            )
        if architecture.startswith("gemma") and merged.endswith("norm.weight"):
            values = values + 1
        values = interleaved(values, heads) if heads else values
        block = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][0]
        is_norm = merged.endswith("norm.weight")  # those of heads are matrices
        stored = kind if values.ndim > 1 and values.shape[-1] % block == 0 and not is_norm else "F32"
        raw = blocks(values, stored, rng)
        writer.add_tensor(theirs, raw, raw_dtype=gguf.GGMLQuantizationType[stored])
        read = numbers(raw, stored)
        read = _separated(read, heads) if heads else read
        for part, each in zip(parts, read if parts != [merged] else [read], strict=True):
            held[part] = torch.from_numpy(np.array(each))
    return held


def _merged(state: dict[str, torch.Tensor], config: PreTrainedConfig) -> dict[str, list[str]]:
    """Return the names of tensors, each with those of its experts; what the converter leaves out is left out."""
    merged: dict[str, list[str]] = {}
    for name in state:
        if name.startswith("pooler.") or (name == "lm_head.weight" and config.tie_word_embeddings):
            continue
        match = _EXPERT.fullmatch(name)
        merged.setdefault(match[1] + match[3] if match else name, []).append(name)
    order = {name: sorted(parts, key=lambda part: int(m[2]) if (m := _EXPERT.fullmatch(part)) else 0)
             for name, parts in merged.items()}  # fmt: skip
    return order


def _add_shape(writer: gguf.GGUFWriter, config: PreTrainedConfig) -> None:
    """Write what config.json says."""
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    if config.model_type == "bert":
        writer.add_layer_norm_eps(config.layer_norm_eps)
        writer.add_causal_attention(False)
        writer.add_pooling_type(gguf.PoolingType.MEAN)
        writer.add_token_type_count(config.type_vocab_size)
        return
    writer.add_head_count_kv(config.num_key_value_heads)
    if config.model_type == "cohere":
        writer.add_layer_norm_eps(config.layer_norm_eps)
        writer.add_logit_scale(config.logit_scale)
    else:
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if config.model_type != "phi3":
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    _add_rope(writer, config, head_dim)
    experts = getattr(config, "num_local_experts", None)
    if experts:
        writer.add_expert_count(experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
    if config.model_type == "qwen3_moe":
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    if config.model_type == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if config.model_type in ("gemma2", "gemma3_text", "phi3", "mistral"):
        writer.add_sliding_window(config.sliding_window or 0)


def _add_rope(writer: gguf.GGUFWriter, config: PreTrainedConfig, head_dim: int) -> None:
    """Write how positions turn queries and keys; of Llama 3.1 and Phi 3 the rest is in tensors."""
    rope = config.rope_parameters
    if config.model_type == "gemma3_text":
        writer.add_rope_freq_base_swa(rope["sliding_attention"]["rope_theta"])
        rope = rope["full_attention"]
    writer.add_rope_freq_base(rope["rope_theta"])
    if config.model_type in ("llama", "mistral", "mixtral", "phi3"):
        writer.add_rope_dimension_count(int(head_dim * rope.get("partial_rotary_factor", 1.0)))
    kind = rope["rope_type"]
    if kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(kind))
        writer.add_rope_scaling_factor(rope["factor"])
    if kind in ("yarn", "longrope"):
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if kind == "longrope":
        writer.add_rope_scaling_attn_factors(ROPE_INIT_FUNCTIONS["longrope"](config, "cpu")[1])


def _rope_tensors(config: PreTrainedConfig) -> dict[str, NDArray[np.float32]]:
    """Return the divisors of frequencies that are tensors in GGUF."""
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "llama3":
        frequencies = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")[0]
        plain = rope["rope_theta"] ** -(torch.arange(len(frequencies), dtype=torch.float32) / len(frequencies))
        return {"rope_freqs.weight": (plain / frequencies).float().numpy()}
    if rope.get("rope_type") == "longrope":
        return {
            f"rope_factors_{length}.weight": np.array(rope[f"{length}_factor"], np.float32)
            for length in ("long", "short")
        }
    return {}
