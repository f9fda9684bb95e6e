"""Write small random checkpoints of the families beside Llama."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
OTHERS: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": 32},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2": {},
    "qwen3": {"head_dim": 24},
    "qwen3_moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "head_dim": 16,
        "norm_topk_prob": True,
    },
    "gemma": {"head_dim": 24},
    "gemma2": {"head_dim": 16, "query_pre_attn_scalar": 16},
    "gemma3_text": {"head_dim": 16, "query_pre_attn_scalar": 16, "num_hidden_layers": 7, "sliding_window": 32},
    "phi3": {},
    "bert": {},
}


def write_model(folder: Path, model_type: str, **changes: Any) -> Path:
    """Write a random model of `model_type` into `folder` and return the folder."""
    torch.manual_seed(1)
    config = AutoConfig.for_model(model_type, **{**SMALL, **OTHERS[model_type], **changes})
    model = (AutoModel if model_type == "bert" else AutoModelForCausalLM).from_config(config)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.15)
    model.save_pretrained(folder)
    return folder
