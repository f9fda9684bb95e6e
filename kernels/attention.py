"""Attend from the new tokens of one sequence to all its cached positions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def causal_mask(num_queries: int, num_keys: int, device: torch.device) -> Tensor | None:
    """Return a mask [num_queries, num_keys], true where a query may look; None where all may look everywhere.

    The queries are the last `num_queries` of the `num_keys` positions.
    """
    if num_queries == 1:
        return None
    return torch.ones(num_queries, num_keys, dtype=torch.bool, device=device).tril(num_keys - num_queries)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, kv_of_head: Tensor | None) -> Tensor:
    """Return the mix of v for each query as [T, H, d].

    q [T, H, d]; k, v [S, K, d]; mask as `causal_mask` returns it. kv_of_head [H] names the KV head of each query head;
    None means that consecutive groups of H / K query heads share one.
    """
    if kv_of_head is not None:
        k, v = k[:, kv_of_head], v[:, kv_of_head]
    out = F.scaled_dot_product_attention(
        q.transpose(0, 1)[None],
        k.transpose(0, 1)[None],
        v.transpose(0, 1)[None],
        attn_mask=mask,
        enable_gqa=k.shape[1] != q.shape[1],
    )
    return out[0].transpose(0, 1)
