"""Attend from new tokens to cached positions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def causal_mask(num_queries: int, num_keys: int, device: torch.device) -> Tensor:
    """Return a mask [num_queries, num_keys], true where a query may look.

    The queries are the last `num_queries` of the `num_keys` positions.
    """
    return torch.ones(num_queries, num_keys, dtype=torch.bool, device=device).tril(num_keys - num_queries)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, kv_of_head: Tensor | None) -> Tensor:
    """Return the mix of v for each query of several sequences as [N * T, H, d].

    q [N * T, H, d], T queries for each of N sequences; k, v [N, S, K, d]; mask broadcasts to [N, 1, T, S], true where
    a query may look, or None where all may look everywhere. kv_of_head [H] names the KV head of each query head; None
    means that consecutive groups of H / K query heads share one. Computed in the dtype of k and v.
    """
    q = q.to(k.dtype)
    if kv_of_head is not None:
        k, v = k[:, :, kv_of_head], v[:, :, kv_of_head]
    num_sequences, _, num_kv_heads, size = k.shape
    k, v = k.transpose(1, 2), v.transpose(1, 2)
    if len(q) == num_sequences:  # the heads that share a KV head are its queries, which copies no key
        out = F.scaled_dot_product_attention(q.view(num_sequences, num_kv_heads, -1, size), k, v, attn_mask=mask)
        return out.reshape(q.shape)
    grouped = q.view(num_sequences, -1, q.shape[1], size).transpose(1, 2)
    out = F.scaled_dot_product_attention(grouped, k, v, attn_mask=mask, enable_gqa=num_kv_heads != q.shape[1])
    return out.transpose(1, 2).reshape(q.shape)
