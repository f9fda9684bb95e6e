"""Write small random Llama checkpoints and compute what transformers makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_BASE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 203,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
}
# Each row is what a member of the family has that others have not.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama2": {"num_key_value_heads": 8},
    "llama3": {"rope_scaling": _LLAMA3},
    "tied": {"tie_word_embeddings": True, "vocab_size": 199},
    "wide_heads": {"head_dim": 24, "num_key_value_heads": 1},
    "biases": {"attention_bias": True, "mlp_bias": True, "intermediate_size": 100},
    "linear_rope": {"rope_scaling": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}},
}
PROMPT = [1, 17, 202 % 199, 5, 5, 88, 140, 3, 61, 7, 9, 12, 150, 44, 23, 8, 91]


def write_checkpoint(folder: Path, seed: int = 0, shards: bool = False, **changes: Any) -> Path:
    """Write a random model into `folder`; with `shards`, in several files with an index. Return the folder."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**{**_BASE, **changes}))
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.15)
    model.save_pretrained(folder, max_shard_size="60KB" if shards else "5GB")
    return folder


def reference(folder: Path) -> LlamaForCausalLM:
    """Return the model in `folder` as transformers reads it, in fp32."""
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@torch.no_grad()
def reference_logits(folder: Path, tokens: list[int]) -> torch.Tensor:
    """Return transformers' logits [T, V] in fp32."""
    logits: torch.Tensor = reference(folder)(torch.tensor([tokens])).logits[0]
    return logits


@torch.no_grad()
def reference_hidden(folder: Path, tokens: list[int]) -> torch.Tensor:
    """Return transformers' hidden states [T, D] behind the last norm in fp32."""
    hidden: torch.Tensor = reference(folder).model(torch.tensor([tokens])).last_hidden_state[0]
    return hidden


@torch.no_grad()
def reference_greedy(folder: Path, tokens: list[int], count: int) -> list[int]:
    """Return the `count` tokens that transformers' logits make likeliest, one by one, without a cache."""
    model, text = reference(folder), list(tokens)
    for _ in range(count):
        text.append(int(model(torch.tensor([text])).logits[0, -1].argmax()))
    return text[len(tokens) :]
