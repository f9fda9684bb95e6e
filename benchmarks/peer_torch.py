"""torch eager as a contestant, with torch's own operators: `peer_torch.py MODEL_FOLDER none|q8|q4 THREADS`.

Activations are bf16. q8: weights of 8 bits with a scale for each row; q4: of 4 bits in groups of 32.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from contestant import Times, serve_turns
from safetensors.torch import load_file
from torch import Tensor

from ollampi.mpiruntime.model_config import read_config

CONTEXT, GROUP = 1024, 32

Product = Callable[[Tensor], Tensor]  # x [T, in] -> [T, out]


def bf16(weight: Tensor) -> Product:
    """Return the product with weight [out, in]."""
    return lambda x: F.linear(x, weight)


def q8(weight: Tensor) -> Product:
    """Return the product with weight [out, in] in 8 bits, of torch's operator for bf16 activations."""
    scales = weight.float().abs().amax(1) / 127
    whole = (weight.float() / scales[:, None]).round().to(torch.int8)
    scales = scales.bfloat16()
    return lambda x: torch.ops.aten._weight_int8pack_mm(x, whole, scales)


def q4(weight: Tensor) -> Product:
    """Return the product with weight [out, in] in 4 bits, of torch's operator for bf16 activations."""
    groups = weight.float().unflatten(1, (-1, GROUP))
    scales = (groups.abs().amax(2, keepdim=True) / 7).clamp_min(1e-8)
    whole = (groups / scales).round().clamp(-8, 7).flatten(1).to(torch.int32) + 8
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(whole, 2)
    both = torch.cat((scales, torch.zeros_like(scales)), 2).transpose(0, 1).contiguous().bfloat16()  # [groups, out, 2]
    return lambda x: torch.ops.aten._weight_int4pack_mm_for_cpu(x, packed, GROUP, both)


class Eager:
    """A plain Llama; streams of one length share a step, their keys and values lie in one tensor."""

    def __init__(self, folder: Path, product: Callable[[Tensor], Product]) -> None:
        self.config = config = read_config(folder)
        self.vocab_size = config.vocab_size
        self.facts: dict[str, Any] = {}
        weights = load_file(folder / "model.safetensors")
        self._table = weights.pop("model.embed_tokens.weight")
        self._head = product(weights.pop("lm_head.weight", self._table))
        self._norms = {name: weight for name, weight in weights.items() if weight.dim() == 1}
        self._products = {name: product(weights[name]) for name in list(weights) if weights[name].dim() == 2}
        angles = torch.arange(CONTEXT)[:, None] * config.layers[0].rope.theta ** (
            -torch.arange(0, config.head_dim, 2) / config.head_dim
        )
        self._cos, self._sin = (f(torch.cat((angles, angles), 1)).bfloat16() for f in (torch.cos, torch.sin))

    @torch.inference_mode()
    def answer(self, prompts: list[list[int]], tokens: int) -> Times:
        """Return when each of the likeliest tokens was there."""
        c = self.config
        shape = c.num_layers, 2, len(prompts), c.num_kv_heads, CONTEXT, c.head_dim
        cache = torch.zeros(shape, dtype=torch.bfloat16)
        times: Times = [[] for _ in prompts]
        new, start = torch.tensor(prompts), 0
        for _ in range(tokens):
            following = self.logits(new, start, cache).argmax(1)
            now = time.perf_counter()
            for stream in times:
                stream.append(now)
            start += new.shape[1]
            new = following[:, None]
        return times

    def logits(self, tokens: Tensor, start: int, cache: Tensor) -> Tensor:
        """Return the logits [B, V] behind tokens [B, T], which follow `start` others; cache [L, 2, B, K, T', d]."""
        end = start + tokens.shape[1]
        x = F.embedding(tokens, self._table)
        for layer in range(self.config.num_layers):
            x = x + self._attend(f"model.layers.{layer}.", x, start, cache[layer, :, :, :, :end])
            x = x + self._mlp(f"model.layers.{layer}.", x)
        return self._head(self._norm("model.norm", x[:, -1]))

    def _norm(self, name: str, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], self._norms[f"{name}.weight"], self.config.norm_eps)

    def _product(self, name: str, x: Tensor) -> Tensor:
        return self._products[f"{name}.weight"](x.flatten(0, 1)).unflatten(0, x.shape[:2])

    def _attend(self, name: str, x: Tensor, start: int, kept: Tensor) -> Tensor:
        """Return what attention adds to x [B, T, D]; kept [2, B, K, T', d] gets the new keys and values."""
        x = self._norm(name + "input_layernorm", x)
        q, k, v = (
            self._product(f"{name}self_attn.{part}_proj", x).unflatten(2, (-1, self.config.head_dim)).transpose(1, 2)
            for part in "qkv"
        )
        kept[0, :, :, start:], kept[1, :, :, start:] = self._turned(k, start), v
        causal = x.shape[1] > 1  # prompts begin at 0
        out = F.scaled_dot_product_attention(
            self._turned(q, start), kept[0], kept[1], is_causal=causal, enable_gqa=True
        )
        return self._product(name + "self_attn.o_proj", out.transpose(1, 2).flatten(2))

    def _turned(self, x: Tensor, start: int) -> Tensor:
        """Return x [B, heads, T, d] with its rotary embedding."""
        cos, sin = (table[start : start + x.shape[2]] for table in (self._cos, self._sin))
        first, second = x.chunk(2, -1)
        return x * cos + torch.cat((-second, first), -1) * sin

    def _mlp(self, name: str, x: Tensor) -> Tensor:
        """Return what the MLP adds to x [B, T, D]."""
        x = self._norm(name + "post_attention_layernorm", x)
        gate = F.silu(self._product(name + "mlp.gate_proj", x))
        return self._product(name + "mlp.down_proj", gate * self._product(name + "mlp.up_proj", x))


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[3]))
    serve_turns(Eager(Path(sys.argv[1]), {"none": bf16, "q8": q8, "q4": q4}[sys.argv[2]]))
