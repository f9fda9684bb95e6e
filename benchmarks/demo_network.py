"""The network of the demo model as train_demo.py trains it: a Llama decoder with tied embeddings."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, LAYERS, HEADS, KV_HEADS, MLP, VOCAB = 256, 6, 8, 2, 768, 4096
HEAD_DIM = WIDTH // HEADS
CONTEXT, ROPE_THETA, EPS = 2048, 10000.0, 1e-5


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return x [B, heads, T, d] turned by the rotary angles cos, sin [T, d]."""
    half = x.shape[-1] // 2
    return x * cos + torch.cat((-x[..., half:], x[..., :half]), dim=-1) * sin


class Layer(nn.Module):
    """One Llama decoder layer; its parameters carry the names of the checkpoint format."""

    def __init__(self) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(WIDTH, eps=EPS)
        self.post_attention_layernorm = nn.RMSNorm(WIDTH, eps=EPS)
        self.self_attn = nn.ModuleDict(
            {
                "q_proj": nn.Linear(WIDTH, HEADS * HEAD_DIM, bias=False),
                "k_proj": nn.Linear(WIDTH, KV_HEADS * HEAD_DIM, bias=False),
                "v_proj": nn.Linear(WIDTH, KV_HEADS * HEAD_DIM, bias=False),
                "o_proj": nn.Linear(HEADS * HEAD_DIM, WIDTH, bias=False),
            }
        )
        self.mlp = nn.ModuleDict(
            {
                "gate_proj": nn.Linear(WIDTH, MLP, bias=False),
                "up_proj": nn.Linear(WIDTH, MLP, bias=False),
                "down_proj": nn.Linear(MLP, WIDTH, bias=False),
            }
        )

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Return the layer's output [B, T, D] for x [B, T, D]."""
        batch, length, _ = x.shape
        h = self.input_layernorm(x)
        q, k, v = (
            self.self_attn[n](h).view(batch, length, -1, HEAD_DIM).transpose(1, 2)
            for n in ("q_proj", "k_proj", "v_proj")
        )
        q, k = rotate(q, cos, sin).to(v.dtype), rotate(k, cos, sin).to(v.dtype)
        k, v = (t.repeat_interleave(HEADS // KV_HEADS, dim=1) for t in (k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.self_attn["o_proj"](mixed.transpose(1, 2).reshape(batch, length, -1))
        h = self.post_attention_layernorm(x)
        return x + self.mlp["down_proj"](F.silu(self.mlp["gate_proj"](h)) * self.mlp["up_proj"](h))


class Model(nn.Module):
    """The Llama decoder with tied embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(VOCAB, WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.norm = nn.RMSNorm(WIDTH, eps=EPS)
        for name, p in self.named_parameters():
            if p.dim() == 2:
                scale = 1 / math.sqrt(2 * LAYERS) if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0
                nn.init.normal_(p, std=0.02 * scale)

    def forward(self, tokens: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Return logits [B, T, V] for tokens [B, T]."""
        x = self.embed_tokens(tokens)
        for layer in self.layers:
            x = layer(x, cos, sin)
        return F.linear(self.norm(x), self.embed_tokens.weight)


def rotary(length: int) -> tuple[Tensor, Tensor]:
    """Return cos, sin [length, d] of the default rotary embedding (the two halves of a head are one pair)."""
    inverse = ROPE_THETA ** -(torch.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    angles = torch.outer(torch.arange(length), torch.cat((inverse, inverse)))
    return angles.cos(), angles.sin()
