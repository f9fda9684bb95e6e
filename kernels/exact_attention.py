"""Attend so that a query's result depends on the query and the positions that it may see alone, bit for bit.

The twin of kernels.attention. Keys and values lie on grids in the cache already.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ollampi.kernels.attention import Scoring
from ollampi.kernels.elementary import exp, tanh
from ollampi.kernels.grid import on_grid, reach, sum_bits

_TILE = 1 << 16  # numbers that are computed together: several fp64 copies of them stay in a core's cache


def on_cache_grids(k: Tensor, v: Tensor, longest: int) -> tuple[Tensor, Tensor]:
    """Return keys and values [T, K, d] on their grids in fp64; fp32 and bf16 hold them as they are.

    longest: the most positions that any query may ever see; fixed by the model, so that no setting changes a bit.
    """
    return on_grid(k, reach(k), sum_bits(k.shape[-1])[1]), on_grid(v, reach(v), sum_bits(longest)[1])


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    kv_of_head: Tensor | None,
    scoring: Scoring,
    longest: int,
) -> Tensor:
    """Return the mix of v for each query of several sequences as [N * T, H, d] in fp32.

    Shapes as in kernels.attention; k and v as `on_cache_grids` made them, for the same `longest`.
    """
    if kv_of_head is not None:
        k, v = k[:, :, kv_of_head], v[:, :, kv_of_head]
    num_sequences, num_keys, num_kv_heads, width = k.shape
    queries = on_grid(q, reach(q), sum_bits(width)[0])
    queries = queries.view(num_sequences, -1, num_kv_heads, q.shape[1] // num_kv_heads, width).permute(0, 2, 3, 1, 4)
    _, _, group, num_queries, _ = queries.shape
    if mask is not None:
        mask = mask.expand(num_sequences, 1, num_queries, num_keys)[:, :, None]
    out = torch.empty(queries.shape)
    for heads in _pieces(num_kv_heads, num_sequences * num_keys * width):
        keys, values = (x[:, :, heads].transpose(1, 2).double() for x in (k, v))
        each = num_sequences * keys.shape[1] * group * num_keys
        for rows in _pieces(num_queries, each):
            visible = None if mask is None else mask[..., rows, :]
            weights = _weights(queries[:, heads, :, rows], keys, visible, scoring)
            out[:, heads, :, rows] = _mix(weights, values, longest)
    return out.permute(0, 3, 1, 2, 4).reshape(q.shape)


def _pieces(count: int, each: int) -> Iterator[slice]:
    """Yield range(count) in slices of as many as have _TILE numbers in all, at least one."""
    length = max(1, _TILE // each)
    for first in range(0, count, length):
        yield slice(first, first + length)


def _weights(q: Tensor, k: Tensor, visible: Tensor | None, scoring: Scoring) -> Tensor:
    """Return exp(score - largest score) [N, K, G, T, S] in fp64 for q [N, K, G, T, d], k [N, K, S, d].

    0 where visible, which broadcasts to the result, is false.
    """
    products = q.flatten(2, 3) @ k.transpose(2, 3)  # exact
    scores = products.view(*q.shape[:4], -1).mul_(scoring.scale)
    if scoring.cap is not None:
        scores = scoring.cap * tanh((scores / scoring.cap).float()).double()
    if visible is not None:
        scores.masked_fill_(~visible, -torch.inf)
    weights = exp((scores - scores.amax(-1, keepdim=True)).float()).double()
    return weights if visible is None else weights.masked_fill_(~visible, 0)


def _mix(weights: Tensor, v: Tensor, longest: int) -> Tensor:
    """Return sum_j weights_ij v_j / sum_j weights_ij [N, K, G, T, d] for weights [N, K, G, T, S], v [N, K, S, d].

    A product's grid is that of its weight times that of its value. To be the same for all positions j, the weight's is
    the coarser the larger the value. Weights are taken in two parts, a coarse one and what it leaves: a long context
    leaves few bits for either, and many small weights count together.
    """
    bits, _ = sum_bits(longest)
    total = on_grid(weights, 1.0, sum(sum_bits(longest))).sum(-1, keepdim=True)
    sizes = reach(v)[:, :, None, None, :, 0]
    scaled = weights * sizes
    size = reach(scaled)
    high = on_grid(scaled, size, bits)
    low = on_grid(scaled - high, size * 2.0**-bits, bits)
    parts = torch.stack((high, low), 2).div_(sizes[:, :, None])
    products = parts.flatten(2, 4) @ v  # exact
    products = products.view(*parts.shape[:5], -1)
    return ((products[:, :, 0] + products[:, :, 1]) / total).float()
