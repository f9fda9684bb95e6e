"""Make a random model of 1.04 billion weights: width 2048, MLP 8192, 16 layers, 32 heads of which 8 for keys."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from support.servers import endless_model
from torch import Tensor

WIDTH, MLP, KV, VOCAB, LAYERS = 2048, 8192, 512, 16384, 16
CONFIG = {
    "hidden_size": WIDTH,
    "intermediate_size": MLP,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": VOCAB,
    "tie_word_embeddings": False,
}


def large_model(parent: Path) -> Path:
    """Return the folder of the model below `parent`; it is written in bf16 unless it is there.

    Its tokenizer is the demo model's, and it knows no token to stop at. The output head is a table of its own.
    """
    folder, making = parent / "large", parent / "making"
    if folder.is_dir():
        return folder
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    made = endless_model(making)
    config = json.loads((made / "config.json").read_text()) | CONFIG
    (made / "config.json").write_text(json.dumps(config))
    save_file(tensors(), made / "model.safetensors", {"format": "pt"})
    return made.rename(folder)


def tensors() -> dict[str, Tensor]:
    """Return the weights [out, in] in bf16, normal with a deviation of 0.02, and the norms [D], all 1."""
    draw = torch.Generator().manual_seed(0)

    def matrix(num_rows: int, num_columns: int) -> Tensor:
        return torch.randn(num_rows, num_columns, dtype=torch.bfloat16, generator=draw) * 0.02

    norm = torch.ones(WIDTH, dtype=torch.bfloat16)
    found = {
        "model.embed_tokens.weight": matrix(VOCAB, WIDTH),
        "lm_head.weight": matrix(VOCAB, WIDTH),
        "model.norm.weight": norm.clone(),
    }
    for layer in range(LAYERS):
        parts = {
            "input_layernorm": norm.clone(),
            "post_attention_layernorm": norm.clone(),
            "self_attn.q_proj": matrix(WIDTH, WIDTH),
            "self_attn.k_proj": matrix(KV, WIDTH),
            "self_attn.v_proj": matrix(KV, WIDTH),
            "self_attn.o_proj": matrix(WIDTH, WIDTH),
            "mlp.gate_proj": matrix(MLP, WIDTH),
            "mlp.up_proj": matrix(MLP, WIDTH),
            "mlp.down_proj": matrix(WIDTH, MLP),
        }
        found |= {f"model.layers.{layer}.{name}.weight": part for name, part in parts.items()}
    return found
