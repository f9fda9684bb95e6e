"""Write small random checkpoints of every family and compute what transformers makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_BASE: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 203,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
}
_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.2],
    "long_factor": [1.0, 2.0, 4.5],
    "original_max_position_embeddings": 200,
    "partial_rotary_factor": 0.75,
}
_MOE = {"num_experts_per_tok": 2, "intermediate_size": 96}
# Each row is what a family, or a member of it, has that others have not.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama2": {"num_key_value_heads": 8},
    "llama3": {"rope_scaling": _LLAMA3},
    "tied": {"tie_word_embeddings": True, "vocab_size": 199},
    "wide_heads": {"head_dim": 24, "num_key_value_heads": 1},
    "biases": {"attention_bias": True, "mlp_bias": True, "intermediate_size": 100},
    "linear_rope": {"rope_scaling": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}},
    "dynamic_rope": {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}},
    "yarn": {"rope_scaling": _YARN},
    "mistral": {"model_type": "mistral", "sliding_window": 7},
    "mixtral": {"model_type": "mixtral", "num_local_experts": 5, **_MOE},
    "qwen2": {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
    "qwen3": {"model_type": "qwen3", "head_dim": 12, "tie_word_embeddings": True},
    "qwen3_moe": {
        "model_type": "qwen3_moe",
        "head_dim": 16,
        "num_experts": 6,
        "moe_intermediate_size": 64,
        "norm_topk_prob": True,
        "mlp_only_layers": [1],
        **_MOE,
    },
    "gemma": {"model_type": "gemma", "head_dim": 16, "tie_word_embeddings": True, **_IDS},
    "gemma2": {
        "model_type": "gemma2",
        "head_dim": 16,
        "sliding_window": 5,
        "query_pre_attn_scalar": 24,
        "attn_logit_softcapping": 3.0,
        "final_logit_softcapping": 5.0,
        "tie_word_embeddings": True,
        **_IDS,
    },
    "gemma3": {
        "model_type": "gemma3_text",
        "num_hidden_layers": 7,
        "head_dim": 16,
        "sliding_window": 5,
        "query_pre_attn_scalar": 24,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "tie_word_embeddings": True,
        **_IDS,
    },
    "phi3": {"model_type": "phi3", "sliding_window": 9, **_IDS},
    "phi4": {
        "model_type": "phi3",
        "rope_scaling": _LONGROPE,
        "original_max_position_embeddings": 200,
        "num_key_value_heads": 4,
        **_IDS,
    },
    "cohere": {"model_type": "cohere", "logit_scale": 0.3, "tie_word_embeddings": True, **_IDS},
    "cohere_biases": {"model_type": "cohere", "attention_bias": True, "num_key_value_heads": 4, **_IDS},
    "cohere_plus": {"model_type": "cohere", "use_qk_norm": True, "num_key_value_heads": 4, **_IDS},
    "phi": {"model_type": "phi", "num_key_value_heads": 8, "hidden_act": "gelu_new", **_IDS},
    "phi_grouped": {"model_type": "phi", "partial_rotary_factor": 0.25, "intermediate_size": 100, **_IDS},
}
ENCODERS: dict[str, dict[str, Any]] = {"bert": {"model_type": "bert", "num_key_value_heads": None}}
PROMPT = [1, 17, 202 % 199, 5, 5, 88, 140, 3, 61, 7, 9, 12, 150, 44, 23, 8, 91]


def write_checkpoint(folder: Path, seed: int = 0, shards: bool = False, **changes: Any) -> Path:
    """Write a random model into `folder`; with `shards`, in several files with an index. Return the folder."""
    torch.manual_seed(seed)
    values = {key: value for key, value in {**_BASE, **changes}.items() if value is not None}
    config = AutoConfig.for_model(**values)
    kind = AutoModel if values["model_type"] == "bert" else AutoModelForCausalLM
    model = kind.from_config(config, attn_implementation="eager", dtype=torch.float32)
    for name, p in model.named_parameters():  # norms scale by about 1, so that everything between them matters
        torch.nn.init.normal_(p, std=0.15)
        if "norm" in name.lower() and name.endswith("weight") and "gemma" not in values["model_type"]:
            p.data += 1
    model.save_pretrained(folder, max_shard_size="60KB" if shards else "5GB")
    return folder


def reference(folder: Path, kind: Any = AutoModelForCausalLM) -> Any:
    """Return the model in `folder` as transformers reads it, in fp32."""
    return kind.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


@torch.no_grad()
def reference_logits(folder: Path, tokens: list[int]) -> torch.Tensor:
    """Return transformers' logits [T, V] in fp32."""
    logits: torch.Tensor = reference(folder)(torch.tensor([tokens])).logits[0]
    return logits


@torch.no_grad()
def reference_hidden(folder: Path, tokens: list[int]) -> torch.Tensor:
    """Return transformers' hidden states [T, D] behind the last norm in fp32."""
    hidden: torch.Tensor = reference(folder, AutoModel)(torch.tensor([tokens])).last_hidden_state[0]
    return hidden


@torch.no_grad()
def reference_greedy(folder: Path, tokens: list[int], count: int) -> list[int]:
    """Return the `count` tokens that transformers' logits make likeliest, one by one, without a cache."""
    model, text = reference(folder), list(tokens)
    for _ in range(count):
        text.append(int(model(torch.tensor([text])).logits[0, -1].argmax()))
    return text[len(tokens) :]
