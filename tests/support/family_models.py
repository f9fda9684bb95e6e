"""Write small random checkpoints of the families beside Llama and compute what transformers makes of them."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from support.checkpoints import PROMPT

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
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0 + i / 8 for i in range(8)],
    "long_factor": [2.0 + i for i in range(8)],
    "original_max_position_embeddings": 256,
}
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((model_type, {}) for model_type in OTHERS),
    ("phi3", {"rope_parameters": LONGROPE, "original_max_position_embeddings": 256, "max_position_embeddings": 1024}),
    ("phi3", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}}),
    ("phi3", {"sliding_window": 8}),
    ("qwen2", {"tie_word_embeddings": True}),
    (
        "qwen2",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1e6,
                "factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
    ),
    ("gemma2", {"num_hidden_layers": 46, "query_pre_attn_scalar": 16, "head_dim": 24}),  # as 27B has it
    (
        "gemma3_text",
        {
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
                "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
            }
        },
    ),
]


def write_model(folder: Path, model_type: str, **changes: Any) -> Path:
    """Write a random model of `model_type` into `folder` and return the folder."""
    torch.manual_seed(1)
    config = AutoConfig.for_model(model_type, **deepcopy({**SMALL, **OTHERS[model_type], **changes}))
    model = (AutoModel if model_type == "bert" else AutoModelForCausalLM).from_config(config)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.15)
    model.save_pretrained(folder)
    return folder


@torch.no_grad()
def outputs(folder: Path) -> torch.Tensor:
    """Return transformers' logits, or of an encoder the hidden states, [T, ...] for a prompt."""
    encoder = json.loads((folder / "config.json").read_text())["model_type"] == "bert"
    model = (AutoModel if encoder else AutoModelForCausalLM).from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    made = model.eval()(torch.tensor([[token % 100 for token in PROMPT]]))
    result: torch.Tensor = (made.last_hidden_state if encoder else made.logits)[0]
    return result
