"""Tell which tensor of a Hugging Face checkpoint a tensor of a GGUF file is, and the other way round.

The names of GGUF are those of the `gguf` package (constants.TENSOR_NAMES); tensors of experts stand there for all
experts of a layer, `blk.0.ffn_up_exps.weight`, or in files of 2023 for one, `blk.0.ffn_up.3.weight`.
"""

from __future__ import annotations

import re

_LAYER = re.compile(r"blk\.(\d+)\.(\w+)(?:\.(\d+))?\.(weight|bias)")

_OUR_LAYER = re.compile(r"model\.layers\.(\d{1,9})\.(.+)")

# What becomes part of the config, and what sees or hears in files that hold that too.
_LEFT_OUT = re.compile(r"rope_freqs\.weight|rope_factors_(long|short)\.weight|(v|a|mm)\..*")

_DECODER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_DECODER_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_AROUND = {  # Gemma 2 and 3 have norms before and behind
    "ffn_norm": "pre_feedforward_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_BERT = {
    "token_embd": "embeddings.word_embeddings",
    "token_types": "embeddings.token_type_embeddings",
    "position_embd": "embeddings.position_embeddings",
    "token_embd_norm": "embeddings.LayerNorm",
}
_BERT_LAYER = {
    "attn_q": "attention.self.query",
    "attn_k": "attention.self.key",
    "attn_v": "attention.self.value",
    "attn_output": "attention.output.dense",
    "attn_output_norm": "attention.output.LayerNorm",
    "ffn_up": "intermediate.dense",
    "ffn_down": "output.dense",
    "layer_output_norm": "output.LayerNorm",
}
_OF_FAMILY = {
    "gemma2": _AROUND,
    "gemma3": _AROUND,
    "phi3": {"ffn_up": "mlp.gate_up_proj"},
    "bert": _BERT_LAYER,
}
# The router, and gate, up and down of one expert.
_EXPERTS = {
    "llama": ("block_sparse_moe.gate", "block_sparse_moe.experts.{}.", {"gate": "w1", "up": "w3", "down": "w2"}),
    "qwen3moe": ("mlp.gate", "mlp.experts.{}.", {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}),
}


def checkpoint_name(architecture: str, name: str) -> str | None:
    """Return the Hugging Face name of a tensor, None where the decoder has no use for it.

    A name that is not known is returned as it is. Of experts "{}" stands for the number of one.
    """
    if _LEFT_OUT.fullmatch(name):
        return None
    stem, _, suffix = name.rpartition(".")
    whole = (_BERT if architecture == "bert" else _DECODER).get(stem)
    if whole is not None:
        return f"{whole}.{suffix}"
    match = _LAYER.fullmatch(name)
    inner = match and _in_layer(architecture, match[2], match[3])
    if match is None or inner is None:
        return name
    prefix = "encoder.layer" if architecture == "bert" else "model.layers"
    return f"{prefix}.{match[1]}.{inner}.{match[4]}"


def gguf_name(architecture: str, name: str) -> tuple[str, int | None] | None:
    """Return the name that a tensor of a decoder has in a GGUF file, None where it has no place there.

    name: as Hugging Face has it, its body under "model". Of an expert's tensor the number of the expert comes with it,
    as the tensors of all are one.
    """
    stem, _, suffix = name.rpartition(".")
    whole = {ours: theirs for theirs, ours in _DECODER.items()}.get(stem)
    if whole is not None:
        return f"{whole}.{suffix}", None
    match = _OUR_LAYER.fullmatch(stem)
    if match is None:
        return None
    layer, inner = f"blk.{int(match[1])}", match[2]
    router, expert, parts = _EXPERTS.get(architecture, ("", "", {}))
    if inner == router:
        return f"{layer}.ffn_gate_inp.{suffix}", None
    number = re.match(expert.replace(".", r"\.").format(r"(\d+)"), inner) if expert else None
    if number is not None:
        kinds = {ours: theirs for theirs, ours in parts.items()}
        kind = kinds.get(inner[number.end() :])
        return None if kind is None else (f"{layer}.ffn_{kind}_exps.{suffix}", int(number[1]))
    plain = {ours: theirs for theirs, ours in {**_DECODER_LAYER, **_OF_FAMILY.get(architecture, {})}.items()}
    return (f"{layer}.{plain[inner]}.{suffix}", None) if inner in plain else None


def _in_layer(architecture: str, part: str, number: str | None) -> str | None:
    """Return the name of a part of a layer, or of the part of expert `number`; None where it is not known."""
    if part == "ffn_gate_inp" or part.endswith("_exps") or number is not None:
        router, expert, parts = _EXPERTS.get(architecture, ("", "", {}))
        if part == "ffn_gate_inp":
            return router or None
        one = parts.get(part.removeprefix("ffn_").removesuffix("_exps"))
        return one and expert.format("{}" if number is None else number) + one
    return {**_DECODER_LAYER, **_OF_FAMILY.get(architecture, {})}.get(part)
