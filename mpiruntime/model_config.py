"""Read a model's config.json into the values that the one decoder is built from."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ollampi.mpiruntime.config_fields import Fields
from ollampi.mpiruntime.errors import ModelError
from ollampi.mpiruntime.families import FAMILIES, NESTED, SHARED_KEYS, Family, Names
from ollampi.mpiruntime.gguf_config import gguf_config
from ollampi.mpiruntime.gguf_header import read_gguf
from ollampi.mpiruntime.layer_kinds import Layer, layers_of
from ollampi.mpiruntime.strict_json import read_object

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
_MOST_EXPERTS = 4096
WITH_OFFSET = "norms_with_offset"  # what the family adds to the weights of norms has been added
_WIDEST, _WIDEST_HEAD = 1 << 24, 1 << 16
_IDLE = re.compile(  # tables that are computed, what sees instead of reads, and heads for other tasks
    r"rotary_emb\.inv_freq$|position_ids$|(^|\.)(vision_tower|multi_modal_projector|pooler)\.|^cls\.|\.input_scale$"
)


@dataclass(frozen=True)
class Experts:
    """A mixture of experts: `per_token` of `count` gated MLPs of width `width` compute a token.

    normalised: their shares add up to one.
    """

    count: int
    per_token: int
    width: int
    normalised: bool


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a decoder; one row of values is one family. Fields that Family has too are explained there."""

    model_type: str
    width: int
    mlp_width: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_context: int
    norm_eps: float
    layers: tuple[Layer, ...]
    tied_embeddings: bool
    has_head: bool  # else it makes hidden states only
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    head_bias: bool
    gated: bool
    dtype: str  # of the checkpoint: float32, float16 or bfloat16
    names: Names
    norms: str
    norm: str
    norm_offset: float
    activation: str  # silu, gelu or gelu_tanh
    qk_norm: bool  # RMSNorm with one weight for all heads; where norm is "centred", that with one for each
    fused: bool
    attention_scale: float  # of the products of queries and keys
    attention_cap: float | None  # c tanh(x / c) of these
    logit_cap: float | None  # likewise of logits
    logit_scale: float
    embedding_scale: float
    experts: Experts | None
    encoder: bool
    num_token_types: int
    paired_rope: bool

    @property
    def parallel(self) -> bool:
        """Return whether attention and MLP of a layer see the same input, so that both can be summed at once."""
        return self.norms == "shared"

    @property
    def num_layers(self) -> int:
        """Return the number of layers."""
        return len(self.layers)

    @property
    def num_tables(self) -> int:
        """Return how many tables of [V, D] there are: that of the tokens, and the output head where it is another."""
        return 2 if self.has_head and not self.tied_embeddings else 1


def read_config(path: Path) -> ModelConfig:
    """Return the config of the model in folder or GGUF file `path`; raise ModelError with file, key and value."""
    file = path / "config.json"
    try:
        is_folder = not path.is_file()
        is_there = not is_folder or file.is_file()
    except OSError as e:  # permissions, or a file system that has gone
        raise ModelError(f"{path} cannot be read: {e.strerror}; check the folder and its file system") from e
    if not is_folder:
        return parse_config(gguf_config(read_gguf(path, tokens=False)), str(path))
    if not is_there:
        raise ModelError(f"{file} is no file; a model is a folder with a Hugging Face config.json")
    values = read_object(file)
    values.pop(WITH_OFFSET, None)  # which GGUF files alone have
    return parse_config(values, str(file))


def parse_config(values: dict[str, Any], source: str) -> ModelConfig:
    """Return the config in `values`; `source` names it in errors."""
    fields = _text_fields(Fields(values, source))
    model_type = fields.text("model_type", "")
    family = _family(model_type, source)
    own = {key: value for key, value in fields.values.items() if key not in SHARED_KEYS or key in family.keys}
    fields = Fields({**family.defaults, **own}, fields.source)
    _check_kind(fields, family.encoder)
    width, num_heads, num_kv_heads, head_dim = _heads(fields)
    max_context = fields.number("max_position_embeddings", int, 2048)
    attention_bias, mlp_bias = fields.flag("attention_bias", False), fields.flag("mlp_bias", False)
    eps = fields.number("rms_norm_eps" if family.norm == "rms" else "layer_norm_eps", float, 1e-6)
    query_scalar = fields.number("query_pre_attn_scalar", float, float(head_dim))
    layers = layers_of(fields, family, head_dim, max_context)
    return ModelConfig(
        model_type=model_type,
        width=width,
        mlp_width=fields.bounded("intermediate_size", _WIDEST),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        vocab_size=fields.bounded("vocab_size", _WIDEST),
        max_context=max(layer.rope.longest(max_context) if layer.rope else max_context for layer in layers),
        norm_eps=eps,
        layers=layers,
        tied_embeddings=fields.flag("tie_word_embeddings", False),
        has_head=not family.encoder and not is_headless(values),
        qkv_bias=family.qkv_bias or attention_bias,
        output_bias=family.output_bias or attention_bias,
        mlp_bias=family.mlp_bias or mlp_bias,
        head_bias=family.head_bias,
        gated=family.gated,
        dtype=fields.text("dtype", fields.text("torch_dtype", "float32")),
        names=family.names,
        norms=family.norms,
        norm=family.norm,
        norm_offset=0.0 if fields.flag(WITH_OFFSET, False) else family.norm_offset,
        activation=_activation(fields, model_type),
        qk_norm=family.qk_norm or fields.flag("use_qk_norm", False),
        fused=family.fused,
        attention_scale=query_scalar**-0.5,
        attention_cap=fields.optional("attn_logit_softcapping", float),
        logit_cap=fields.optional("final_logit_softcapping", float),
        logit_scale=fields.number("logit_scale", float, 1.0),
        embedding_scale=width**0.5 if family.scaled_embedding else 1.0,
        experts=_experts(fields),
        encoder=family.encoder,
        num_token_types=fields.number("type_vocab_size", int) if family.encoder else 0,
        paired_rope=family.paired_rope,
    )


def _family(model_type: str, source: str) -> Family:
    """Return the family of a type of models; raise ModelError for one that is not known."""
    if model_type not in FAMILIES:
        known = ", ".join(sorted([*FAMILIES, *NESTED]))
        raise ModelError(f"{source}: model_type {model_type!r:.40} is not supported; known are: {known}")
    return FAMILIES[model_type]


def _check_kind(fields: Fields, encoder: bool) -> None:
    """Raise ModelError where tokens are said to see others than those of the family do."""
    kind = "an encoder" if encoder else "a decoder"
    for key, value in {"use_bidirectional_attention": False, "is_causal": True, "is_decoder": not encoder}.items():
        if fields.flag(key, value) != value:
            raise fields.wrong(key, f"this family is supported as {kind} only")
    if fields.flag("qk_layernorm", False):
        raise fields.wrong("qk_layernorm", "this family is supported without norms of heads only")


def is_headless(values: dict[str, Any]) -> bool:
    """Return whether a config.json says that the checkpoint ends with its hidden states: LlamaModel, for example."""
    names = values.get("architectures")
    last = str(names[-1]) if isinstance(names, list) and names else ""
    return last.endswith("Model") and not last.endswith("LMHeadModel")


def is_idle(config: ModelConfig, name: str) -> bool:
    """Return whether a tensor of a checkpoint is known to be of no use to the decoder."""
    return bool(_IDLE.search(name)) or (name.endswith("lm_head.weight") and config.num_tables == 1)


def paired_heads(config: ModelConfig) -> tuple[tuple[str, ...], int] | None:
    """Return the projections to heads whose rope turns neighbours, and the size of a head; None where none does."""
    return ((config.names.queries, config.names.keys), config.head_dim) if config.paired_rope else None


def _text_fields(fields: Fields) -> Fields:
    """Return the fields of the language model, which a model that also sees nests in its text_config."""
    kind = NESTED.get(fields.text("model_type", ""))
    nested = fields.map("text_config") if kind else None
    if nested is None:
        return fields
    outer: dict[str, Any] = {key: fields.values[key] for key in ("dtype", "torch_dtype") if key in fields.values}
    return Fields({**outer, **nested.values, "model_type": kind}, nested.source)


def _heads(fields: Fields) -> tuple[int, int, int, int]:
    """Return width, query heads, KV heads and the numbers of a head."""
    width, num_heads = fields.bounded("hidden_size", _WIDEST), fields.bounded("num_attention_heads", _WIDEST_HEAD)
    if fields.values.get("head_dim") is None and width % num_heads:
        raise ModelError(
            f"{fields.source}: hidden_size {width} is no multiple of num_attention_heads {num_heads}; give head_dim"
        )
    num_kv_heads = fields.number("num_key_value_heads", int, num_heads)
    if num_heads % num_kv_heads:
        raise ModelError(
            f"{fields.source}: num_attention_heads {num_heads} is no multiple of num_key_value_heads {num_kv_heads}"
        )
    head_dim = fields.number("head_dim", int, max(1, width // num_heads))
    if head_dim > _WIDEST_HEAD:
        raise ModelError(f"{fields.source}: head_dim is {head_dim}; at most {_WIDEST_HEAD} is supported")
    if head_dim % 2:
        raise ModelError(f"{fields.source}: head_dim is {head_dim}; rotary embedding needs an even number")
    return width, num_heads, num_kv_heads, head_dim


def _activation(fields: Fields, model_type: str) -> str:
    """Return the activation of the MLP."""
    key = "hidden_activation" if fields.values.get("hidden_activation") is not None else "hidden_act"
    name = fields.text(key, "silu")
    if name == "gelu" and model_type == "gemma":
        return "gelu_tanh"  # early configs of Gemma say so and mean this
    if name not in ACTIVATIONS:
        raise ModelError(f"{fields.source}: {key} {name!r:.40} is not supported; known are: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def _experts(fields: Fields) -> Experts | None:
    """Return the mixture of experts, None where there is none."""
    key = "num_local_experts" if fields.values.get("num_local_experts") is not None else "num_experts"
    count = fields.optional(key, int)
    if count is None:
        return None
    per_token = fields.number("num_experts_per_tok", int)
    if count > _MOST_EXPERTS:
        raise fields.wrong(key, f"at most {_MOST_EXPERTS} are supported")
    if per_token > count:
        raise fields.wrong("num_experts_per_tok", f"there are {count} experts")
    own = fields.values.get("moe_intermediate_size") is not None
    width = fields.bounded("moe_intermediate_size" if own else "intermediate_size", _WIDEST)
    return Experts(count, per_token, width, fields.flag("norm_topk_prob", fields.text("model_type", "") == "mixtral"))
