"""Make a random model of 1.04 billion weights: width 2048, MLP 8192, 16 layers, 32 heads of which 8 for keys."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from support.servers import endless_model
from torch import Tensor

HEAD_DIM = 64


@dataclass(frozen=True)
class Size:
    """The dimensions of a model; heads: of 64 numbers, of which kv_heads are for keys."""

    width: int = 2048
    mlp: int = 8192
    layers: int = 16
    heads: int = 32
    kv_heads: int = 8
    vocab: int = 16384

    @property
    def config(self) -> dict[str, int | bool]:
        """Return what a model of this size has in its config.json."""
        return {
            "hidden_size": self.width,
            "intermediate_size": self.mlp,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": HEAD_DIM,
            "vocab_size": self.vocab,
            "tie_word_embeddings": False,
        }


LARGE = Size()


def large_model(parent: Path, size: Size = LARGE, name: str = "large") -> Path:
    """Return the folder `name` of the model below `parent`; it is written in bf16 unless it is there.

    Its tokenizer is the demo model's, and it knows no token to stop at. The output head is a table of its own.
    """
    folder, making = parent / name, parent / "making"
    if folder.is_dir():
        return folder
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    made = endless_model(making)
    config = json.loads((made / "config.json").read_text()) | size.config
    (made / "config.json").write_text(json.dumps(config))
    save_file(tensors(size), made / "model.safetensors", {"format": "pt"})
    return made.rename(folder)


def tensors(size: Size) -> dict[str, Tensor]:
    """Return the weights [out, in] in bf16, normal with a deviation of 0.02, and the norms [D], all 1."""
    draw = torch.Generator().manual_seed(0)

    def matrix(num_rows: int, num_columns: int) -> Tensor:
        return torch.randn(num_rows, num_columns, dtype=torch.bfloat16, generator=draw) * 0.02

    wide, kv = size.heads * HEAD_DIM, size.kv_heads * HEAD_DIM
    norm = torch.ones(size.width, dtype=torch.bfloat16)
    found = {
        "model.embed_tokens.weight": matrix(size.vocab, size.width),
        "lm_head.weight": matrix(size.vocab, size.width),
        "model.norm.weight": norm.clone(),
    }
    for layer in range(size.layers):
        parts = {
            "input_layernorm": norm.clone(),
            "post_attention_layernorm": norm.clone(),
            "self_attn.q_proj": matrix(wide, size.width),
            "self_attn.k_proj": matrix(kv, size.width),
            "self_attn.v_proj": matrix(kv, size.width),
            "self_attn.o_proj": matrix(size.width, wide),
            "mlp.gate_proj": matrix(size.mlp, size.width),
            "mlp.up_proj": matrix(size.mlp, size.width),
            "mlp.down_proj": matrix(size.width, size.mlp),
        }
        found |= {f"model.layers.{layer}.{name}.weight": part for name, part in parts.items()}
    return found
