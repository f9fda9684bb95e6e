"""Tell what a GGUF file says of its model as the config.json of Hugging Face would, so that one parser reads both.

The keys are those of the GGUF specification and the `gguf` package's constants; what a family leaves out is what
llama.cpp and Ollama take for it (llama.cpp: src/llama-model.cpp; Ollama: model/models).
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from ollampi.mpiruntime.errors import ModelError
from ollampi.mpiruntime.gguf_header import GgufFile
from ollampi.mpiruntime.gguf_metadata import Metadata
from ollampi.mpiruntime.gguf_rope import original_context, rope_values

_DTYPES = {"F32": "float32", "F16": "float16"}
_POOLINGS = {0: "none", 1: "mean", 2: "cls", 3: "last", 4: "rank"}
_LAYER = re.compile(r"blk\.(\d{1,9})\.")


def gguf_config(file: GgufFile) -> dict[str, Any]:
    """Return the values of a config.json, which model_config.parse_config takes.

    Beside Hugging Face's keys: norms_with_offset where what the family adds to the weights of norms has been added;
    pooling ("mean", "cls", "last") where the file says how texts become embeddings. Raise ModelError with the file
    and the key for what is missing, out of range, contradicts the tensors or is not supported.
    """
    architecture = file.metadata.get("general.architecture")
    if not isinstance(architecture, str) or architecture not in _FAMILIES:
        told = "is missing" if architecture is None else f"{architecture!r:.40} is not supported"
        raise ModelError(
            f"{file.path}: general.architecture {told}; known are: {', '.join(_FAMILIES)}; take a model of one of these"
        )
    meta = Metadata(file, architecture)
    values = {**_shape(meta), **_FAMILIES[architecture](meta)}
    _check_tensors(meta, values)
    pooling = meta.get("pooling_type")
    if pooling is not None and (type(pooling) is not int or pooling not in _POOLINGS):
        raise meta.wrong("pooling_type", f"it must be one of {list(_POOLINGS)}")
    return {**values, "pooling": _POOLINGS[pooling]} if type(pooling) is int and pooling else values


def gguf_heads(file: GgufFile) -> tuple[int, int]:
    """Return how many heads of queries and of keys have their rows in the order of llama.cpp's rope; 0, 0 for none.

    Only of the architecture llama does the conversion to GGUF change the order of rows.
    """
    if file.metadata.get("general.architecture") != "llama":
        return 0, 0
    meta = Metadata(file, "llama")
    heads = meta.whole("attention.head_count")
    return heads, meta.whole("attention.head_count_kv", heads)


def _shape(meta: Metadata) -> dict[str, Any]:
    """Return what all families have."""
    table = meta.tensor("token_embd.weight")
    return {
        "num_hidden_layers": meta.whole("block_count"),
        "hidden_size": meta.whole("embedding_length"),
        "intermediate_size": meta.whole("feed_forward_length"),
        "num_attention_heads": meta.whole("attention.head_count"),
        "max_position_embeddings": meta.whole("context_length"),
        "vocab_size": table.shape[0],
        "dtype": _DTYPES.get(table.blocks.name, "bfloat16"),
    }


def _decoder(meta: Metadata, model_type: str, name: str, eps: float | None = None) -> dict[str, Any]:
    """Return what all decoders have; `eps` is the family's, where files may leave it out."""
    if not meta.flag("attention.causal", True):
        raise meta.wrong("attention.causal", f"of {meta.architecture} only decoders are supported")
    heads, width = meta.whole("attention.head_count"), meta.whole("embedding_length")
    if meta.get("attention.key_length") is None and width % heads:
        raise meta.wrong("attention.head_count", f"embedding_length {width} must be a multiple of it")
    head_dim = meta.whole("attention.key_length", width // heads)
    if meta.whole("attention.value_length", head_dim) != head_dim:
        raise meta.wrong("attention.value_length", f"it must be equal to that of keys, {head_dim}")
    if head_dim % 2:
        raise meta.wrong("attention.key_length", f"heads of {head_dim} cannot be turned, it must be even")
    kv_heads = meta.whole("attention.head_count_kv", heads)
    if heads % kv_heads:
        raise meta.wrong("attention.head_count_kv", f"head_count {heads} must be a multiple of it")
    tensors = meta.file.tensors
    return {
        "model_type": model_type,
        "architectures": [f"{name}ForCausalLM"],
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "rms_norm_eps": meta.number("attention.layer_norm_rms_epsilon", eps),
        "tie_word_embeddings": "output.weight" not in tensors,
        **rope_values(meta, head_dim),
    }


def _llama(meta: Metadata) -> dict[str, Any]:
    """Return what Llama, Mistral and Mixtral have, which are one architecture in GGUF."""
    window = meta.count("attention.sliding_window")
    if meta.count("expert_count") is not None:
        experts = {"num_local_experts": meta.whole("expert_count"), "num_experts_per_tok": _experts_used(meta)}
        return {**_decoder(meta, "mixtral", "Mixtral"), **experts, "sliding_window": window}
    if window is not None:
        return {**_decoder(meta, "mistral", "Mistral"), "sliding_window": window}
    tensors = meta.file.tensors
    biases = {"attention_bias": "blk.0.attn_q.bias" in tensors, "mlp_bias": "blk.0.ffn_up.bias" in tensors}
    return {**_decoder(meta, "llama", "Llama"), **biases}


def _qwen2(meta: Metadata) -> dict[str, Any]:
    return _decoder(meta, "qwen2", "Qwen2")


def _qwen3(meta: Metadata) -> dict[str, Any]:
    return _decoder(meta, "qwen3", "Qwen3")


def _qwen3moe(meta: Metadata) -> dict[str, Any]:
    """Return what Qwen3's mixtures have.

    llama.cpp makes the shares of the chosen experts add up to one; Ollama's converter says so or not, but not how wide
    an expert is.
    """
    width = meta.tensor("blk.0.ffn_up_exps.weight").shape[-2:][0]
    return {
        **_decoder(meta, "qwen3_moe", "Qwen3Moe"),
        "num_experts": meta.whole("expert_count"),
        "num_experts_per_tok": _experts_used(meta),
        "moe_intermediate_size": meta.whole("expert_feed_forward_length", width),
        "norm_topk_prob": meta.flag("norm_top_k_prob", True),
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }


def _experts_used(meta: Metadata) -> int:
    used = meta.whole("expert_used_count")
    if used > meta.whole("expert_count"):
        raise meta.wrong("expert_used_count", f"there are {meta.whole('expert_count')} experts")
    return used


def _gemma(meta: Metadata) -> dict[str, Any]:
    """Return what all Gemmas have; the conversion to GGUF adds the 1 to the weights of norms."""
    kind, name = {"gemma": ("gemma", "Gemma"), "gemma2": ("gemma2", "Gemma2"), "gemma3": ("gemma3_text", "Gemma3")}[
        meta.architecture
    ]
    return {
        **_decoder(meta, kind, name, eps=1e-6),
        "hidden_activation": "gelu_pytorch_tanh",
        "norms_with_offset": True,
    }


def _gemma2(meta: Metadata) -> dict[str, Any]:
    layers = meta.whole("block_count")
    return {
        **_gemma(meta),
        "query_pre_attn_scalar": _gemma_scalar(meta, 46),
        "attn_logit_softcapping": meta.optional("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": meta.optional("final_logit_softcapping", 30.0),
        "sliding_window": meta.whole("attention.sliding_window", 4096),
        "layer_types": _layer_types(meta, layers, 2),
    }


def _gemma3(meta: Metadata) -> dict[str, Any]:
    """Return what Gemma 3 has.

    Files that Ollama made of the first releases lack the scaling of rope, and of 1B cap the logits: Ollama tells them
    by their number of layers (model/models/gemma3/model_text.go), as is done here.
    """
    layers = meta.whole("block_count")
    values = {
        **_gemma(meta),
        "query_pre_attn_scalar": _gemma_scalar(meta, 62),
        "final_logit_softcapping": None if layers == 26 else meta.optional("final_logit_softcapping"),
        "sliding_window": meta.whole("attention.sliding_window", 4096),
        "layer_types": _layer_types(meta, layers, 6),
        "rope_theta": meta.number("rope.freq_base", meta.number("rope.global.freq_base", 1e6)),
        "rope_local_base_freq": meta.number("rope.freq_base_swa", meta.number("rope.local.freq_base", 1e4)),
    }
    if layers in (34, 48, 62) and "rope_scaling" not in values:
        values["rope_scaling"] = {"rope_type": "linear", "factor": 8.0}
    return values


def _gemma_scalar(meta: Metadata, largest: int) -> int:
    """Return by whose root queries are divided: of the largest model, told by its layers, width by heads."""
    width, heads = meta.whole("embedding_length"), meta.whole("attention.head_count")
    if meta.whole("block_count") == largest:
        return width // heads
    return meta.whole("attention.key_length", width // heads)


def _layer_types(meta: Metadata, layers: int, every: int) -> list[str]:
    """Return which layers see a window only: all but every n-th, or as the file lists them."""
    key = "attention.sliding_window_pattern"
    listed = meta.get(key)
    if isinstance(listed, list):
        if len(listed) != layers or not all(isinstance(each, bool) for each in listed):
            raise meta.wrong(key, f"it must be true or false for each of {layers} layers")
    else:
        every = meta.whole(key, every)
        listed = [(i + 1) % every != 0 for i in range(_checked_layers(meta))]
    return ["sliding_attention" if windowed else "full_attention" for windowed in listed]


def _phi3(meta: Metadata) -> dict[str, Any]:
    return {
        **_decoder(meta, "phi3", "Phi3"),
        "sliding_window": meta.count("attention.sliding_window"),
        "original_max_position_embeddings": original_context(meta),
    }


def _command_r(meta: Metadata) -> dict[str, Any]:
    """Return what Command R and R+ have; only the latter's files hold norms of heads.

    llama.cpp knows neither biases nor an output head of its own here.
    """
    return {
        **_decoder(meta, "cohere", "Cohere", eps=1e-5),
        "layer_norm_eps": meta.number("attention.layer_norm_epsilon"),
        "logit_scale": meta.number("logit_scale"),
        "tie_word_embeddings": True,
        "use_qk_norm": "blk.0.attn_q_norm.weight" in meta.file.tensors,
    }


def _bert(meta: Metadata) -> dict[str, Any]:
    if meta.flag("attention.causal", False):
        raise meta.wrong("attention.causal", "of bert only encoders are supported")
    return {
        "model_type": "bert",
        "architectures": ["BertModel"],
        "layer_norm_eps": meta.number("attention.layer_norm_epsilon"),
        "hidden_act": "gelu",
        "type_vocab_size": meta.tensor("token_types.weight").shape[0],
    }


_FAMILIES: dict[str, Callable[[Metadata], dict[str, Any]]] = {
    "llama": _llama,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "qwen3moe": _qwen3moe,
    "gemma": _gemma,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "phi3": _phi3,
    "command-r": _command_r,
    "bert": _bert,
}


def _checked_layers(meta: Metadata) -> int:
    """Return the number of layers; raise ModelError unless the file has tensors of just these."""
    layers = meta.whole("block_count")
    found = {int(match[1]) for match in map(_LAYER.match, meta.file.tensors) if match}
    if len(found) != layers or max(found, default=-1) != layers - 1:
        raise meta.wrong("block_count", f"there are tensors of {len(found)} layers")
    return layers


def _check_tensors(meta: Metadata, values: dict[str, Any]) -> None:
    """Raise ModelError where a number contradicts the shape of a tensor, which is bounded by the size of the file."""
    _checked_layers(meta)
    heads, width = values["num_attention_heads"], values["hidden_size"]
    head_dim, kv_heads = values.get("head_dim", width // heads), values.get("num_key_value_heads", heads)
    fused = "blk.0.attn_qkv.weight" in meta.file.tensors
    attention = ("blk.0.attn_q.weight", "blk.0.attn_qkv.weight")
    rows_q = (heads + 2 * kv_heads if fused else heads) * head_dim
    ups = ("blk.0.ffn_up.weight", "blk.0.ffn_up_exps.weight", "blk.0.ffn_up.0.weight")
    mlp = values.get("moe_intermediate_size", values["intermediate_size"]) * (2 if meta.architecture == "phi3" else 1)
    wanted = [
        ("embedding_length", width, meta.tensor("token_embd.weight"), -1),
        ("attention.head_count", rows_q, meta.tensor(*attention), -2),
        ("expert_feed_forward_length" if "moe_intermediate_size" in values else "feed_forward_length", mlp,
         meta.tensor(*ups), -2),
    ]  # fmt: skip
    if not fused:
        wanted.append(("attention.head_count_kv", kv_heads * head_dim, meta.tensor("blk.0.attn_k.weight"), -2))
    if meta.architecture == "bert":
        wanted.append(("context_length", values["max_position_embeddings"], meta.tensor("position_embd.weight"), -2))
    if "blk.0.ffn_up_exps.weight" in meta.file.tensors:
        experts = values.get("num_experts", values.get("num_local_experts", 1))
        wanted.append(("expert_count", experts, meta.tensor("blk.0.ffn_up_exps.weight"), -3))
    for key, size, tensor, axis in wanted:
        if len(tensor.shape) < -axis or tensor.shape[axis] != size:
            raise meta.wrong(key, f"{tensor.name} of shape {list(tensor.shape)} should have {size} at dimension {axis}")
