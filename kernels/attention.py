"""Attend from new tokens to cached positions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Scoring:
    """How queries score keys: products times `scale`, of which c tanh(x / c) is taken for a cap c.

    window: how many positions a token sees, itself the last of them; None for all.
    """

    scale: float
    cap: float | None = None
    window: int | None = None


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, kv_of_head: Tensor | None, scoring: Scoring) -> Tensor:
    """Return the mix of v for each query of several sequences as [N * T, H, d].

    q [N * T, H, d], T queries for each of N sequences; k, v [N, S, K, d]; mask broadcasts to [N, 1, T, S], true where
    a query may look, or None where all may look everywhere. kv_of_head [H] names the KV head of each query head; None
    means that consecutive groups of H / K query heads share one. The window of `scoring` is the mask's affair.
    Computed in the dtype of k and v.
    """
    if scoring.cap is not None:
        return _capped(q, k, v, mask, kv_of_head, scoring.scale, scoring.cap)
    q = q.to(k.dtype)
    if kv_of_head is not None:
        k, v = k[:, :, kv_of_head], v[:, :, kv_of_head]
    num_sequences, _, num_kv_heads, size = k.shape
    k, v = k.transpose(1, 2), v.transpose(1, 2)
    if len(q) == num_sequences:  # the heads that share a KV head are its queries, which copies no key
        out = F.scaled_dot_product_attention(
            q.view(num_sequences, num_kv_heads, -1, size), k, v, attn_mask=mask, scale=scoring.scale
        )
        return out.reshape(q.shape)
    grouped = q.view(num_sequences, -1, q.shape[1], size).transpose(1, 2)
    out = F.scaled_dot_product_attention(
        grouped, k, v, attn_mask=mask, scale=scoring.scale, enable_gqa=num_kv_heads != q.shape[1]
    )
    return out.transpose(1, 2).reshape(q.shape)


def _capped(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, kv_of_head: Tensor | None, scale: float, cap: float
) -> Tensor:
    """Return what `attend` returns, with capped scores, in fp32."""
    num_sequences, _, num_kv_heads, size = k.shape
    of_head = (
        torch.arange(q.shape[1], device=q.device) * num_kv_heads // q.shape[1] if kv_of_head is None else kv_of_head
    )
    keys, values = (x[:, :, of_head].transpose(1, 2).float() for x in (k, v))
    queries = q.float().view(num_sequences, -1, q.shape[1], size).transpose(1, 2)
    scores = cap * (queries @ keys.transpose(2, 3) * (scale / cap)).tanh()
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return (scores.softmax(-1) @ values).transpose(1, 2).reshape(q.shape)
