"""What the families of models differ in, beyond the values that their config.json gives."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Names:
    """How a family calls its tensors, below the prefix of its body; {} stands for the number of a layer or expert."""

    tokens: str = "embed_tokens"
    layer: str = "layers.{}"
    norm: str = "norm"
    attention: str = "self_attn"
    queries: str = "q_proj"
    keys: str = "k_proj"
    values: str = "v_proj"
    attention_output: str = "o_proj"
    attention_norm: str = "input_layernorm"
    attention_sum_norm: str = "post_attention_layernorm"  # behind attention, where there is such a norm
    mlp: str = "mlp"
    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"
    mlp_norm: str = "post_attention_layernorm"
    mlp_sum_norm: str = "post_feedforward_layernorm"
    router: str = "mlp.gate"
    expert: str = "mlp.experts.{}"
    expert_gate: str = "gate_proj"
    expert_up: str = "up_proj"
    expert_down: str = "down_proj"


_GEMMA2_NAMES = Names(mlp_norm="pre_feedforward_layernorm")
_MIXTRAL_NAMES = Names(
    router="block_sparse_moe.gate",
    expert="block_sparse_moe.experts.{}",
    expert_gate="w1",
    expert_up="w3",
    expert_down="w2",
)
_BERT_NAMES = Names(
    tokens="embeddings.word_embeddings",
    layer="encoder.layer.{}",
    norm="embeddings.LayerNorm",
    attention="attention",
    queries="self.query",
    keys="self.key",
    values="self.value",
    attention_output="output.dense",
    attention_sum_norm="attention.output.LayerNorm",
    mlp="",
    up="intermediate.dense",
    down="output.dense",
    mlp_sum_norm="output.LayerNorm",
)


_PHI_NAMES = Names(norm="final_layernorm", attention_output="dense", up="fc1", down="fc2")


@dataclass(frozen=True)
class Family:
    """One family; `defaults` are what its configs leave out, `keys` those of SHARED_KEYS that its configs have.

    norms: where they stand around attention and MLP: "before" them, "around" both, "after" the sum with what went in,
    or "shared", one before both, which see the same input and are added at once. norm: "rms", "layer" (with a bias) or
    "centred" (without). norm_offset: added to the weights of norms. windows: which layers see a window only, where the
    config does not list them: "all", "late" (from max_window_layers on), or all but every n-th. ropes: other names of
    kinds of rope.
    """

    defaults: dict[str, Any] = field(default_factory=dict)
    keys: frozenset[str] = frozenset()
    names: Names = Names()
    norms: str = "before"
    norm: str = "rms"
    norm_offset: float = 0.0
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    head_bias: bool = False
    gated: bool = True  # the MLP: down(act(gate(x)) * up(x)), else down(act(up(x)))
    qk_norm: bool = False
    fused: bool = False  # queries, keys and values are one tensor, and so are gate and up
    scaled_embedding: bool = False  # by the root of the width
    windows: str | int = "all"
    windows_if: str | None = None  # a flag without which there are none
    ropes: dict[str, str] = field(default_factory=dict)
    paired_rope: bool = False  # which turns numbers 2 i and 2 i + 1 of a head
    encoder: bool = False  # tokens see those behind them too, and there is no output head


_WINDOWS = {"sliding_window", "layer_types"}
_LATE_WINDOWS = _WINDOWS | {"use_sliding_window", "max_window_layers"}
_EXPERTS = {
    "num_experts",
    "num_local_experts",
    "num_experts_per_tok",
    "moe_intermediate_size",
    "norm_topk_prob",
    "decoder_sparse_step",
    "mlp_only_layers",
}
_BIASES = {"attention_bias", "mlp_bias"}
_PARTS = {"partial_rotary_factor"}
_OF_PHI = _PARTS | {"qk_layernorm"}
_OF_COHERE = {"attention_bias", "logit_scale", "use_qk_norm"}
_OF_GEMMA = {"attention_bias", "hidden_activation"}
_OF_GEMMA2 = _OF_GEMMA | _WINDOWS | {"query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping"}
_OF_GEMMA3 = (_OF_GEMMA2 - {"attn_logit_softcapping"}) | {"sliding_window_pattern", "rope_local_base_freq"}
# What not all families have; in the config of one that has it not it is a left-over, which means nothing.
SHARED_KEYS = frozenset(_LATE_WINDOWS | _EXPERTS | _BIASES | _PARTS | _OF_PHI | _OF_COHERE | _OF_GEMMA2 | _OF_GEMMA3)

_GEMMA = {
    "head_dim": 256,
    "hidden_act": "gelu_pytorch_tanh",
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
_GEMMA2 = {
    "query_pre_attn_scalar": 256,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "sliding_window": 4096,
}
_GEMMA3 = {
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "max_position_embeddings": 131072,
    "rope_theta": 1e6,
    "rope_local_base_freq": 10000.0,
    "vocab_size": 262208,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
}
_QWEN = {"max_position_embeddings": 32768, "sliding_window": 4096, "max_window_layers": 28}
_MISTRAL = {"max_position_embeddings": 131072, "num_key_value_heads": 8}
_BERT = {"hidden_act": "gelu", "max_position_embeddings": 512, "type_vocab_size": 2, "layer_norm_eps": 1e-12}
_PHI = {"hidden_act": "gelu_new", "max_position_embeddings": 2048, "layer_norm_eps": 1e-5, "partial_rotary_factor": 0.5}
_COHERE = {
    "max_position_embeddings": 8192,
    "layer_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "logit_scale": 0.0625,
    "tie_word_embeddings": True,
}

FAMILIES = {
    "llama": Family(keys=frozenset(_BIASES | _PARTS)),
    "mistral": Family(defaults={**_MISTRAL, "sliding_window": 4096}, keys=frozenset({"sliding_window"})),
    "mixtral": Family(
        defaults={
            **_MISTRAL,
            "rope_theta": 1e6,
            "rms_norm_eps": 1e-5,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
        },
        keys=frozenset({"sliding_window", "num_experts", "num_local_experts", "num_experts_per_tok"}),
        names=_MIXTRAL_NAMES,
    ),
    "qwen2": Family(
        defaults=_QWEN,
        keys=frozenset(_LATE_WINDOWS),
        qkv_bias=True,
        windows="late",
        windows_if="use_sliding_window",
    ),
    "qwen3": Family(
        defaults={**_QWEN, "head_dim": 128},
        keys=frozenset(_LATE_WINDOWS | {"attention_bias"}),
        qk_norm=True,
        windows="late",
        windows_if="use_sliding_window",
    ),
    "qwen3_moe": Family(
        defaults={
            **_QWEN,
            "num_key_value_heads": 4,
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 768,
        },
        keys=frozenset({"use_sliding_window", "sliding_window", "attention_bias"} | _EXPERTS),
        qk_norm=True,
        windows_if="use_sliding_window",
    ),
    "gemma": Family(defaults=_GEMMA, keys=frozenset(_OF_GEMMA), norm_offset=1.0, scaled_embedding=True),
    "gemma2": Family(
        defaults={**_GEMMA, **_GEMMA2},
        keys=frozenset(_OF_GEMMA2),
        names=_GEMMA2_NAMES,
        norms="around",
        norm_offset=1.0,
        scaled_embedding=True,
        windows=2,
    ),
    "gemma3_text": Family(
        defaults={**_GEMMA, **_GEMMA3},
        keys=frozenset(_OF_GEMMA3),
        names=_GEMMA2_NAMES,
        norms="around",
        norm_offset=1.0,
        qk_norm=True,
        scaled_embedding=True,
        windows=6,
    ),
    "phi3": Family(
        defaults={"max_position_embeddings": 4096, "rms_norm_eps": 1e-5},
        keys=frozenset({"sliding_window"} | _PARTS),
        fused=True,
        ropes={"su": "longrope", "yarn": "longrope"},
    ),
    "cohere": Family(defaults=_COHERE, keys=frozenset(_OF_COHERE), norms="shared", norm="centred", paired_rope=True),
    "phi": Family(
        defaults=_PHI,
        keys=frozenset(_OF_PHI),
        names=_PHI_NAMES,
        norms="shared",
        norm="layer",
        qkv_bias=True,
        output_bias=True,
        mlp_bias=True,
        head_bias=True,
        gated=False,
    ),
    "bert": Family(
        defaults=_BERT,
        names=_BERT_NAMES,
        norms="after",
        norm="layer",
        qkv_bias=True,
        output_bias=True,
        mlp_bias=True,
        gated=False,
        encoder=True,
    ),
}
# What the names of a body's tensors begin with: it may be a part of a model that sees or has an output head.
BODIES = ("model", "", "model.language_model", "language_model.model", "bert")
ENCODERS = frozenset(name for name, family in FAMILIES.items() if family.encoder)
NESTED = {"gemma3": "gemma3_text"}  # models that also see; their text_config is one of these
