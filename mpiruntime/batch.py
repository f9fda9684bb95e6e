"""Turn a step's integers into the tensors of one forward pass."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ollampi.kernels.attention import causal_mask
from ollampi.mpiruntime.step import Chunk, Step


@dataclass(frozen=True)
class Span:
    """One sequence in a batch.

    queries: its rows among the T tokens; keys: the cache slots of all its positions so far, as a slice where they are
    neighbours and as indices [S] otherwise; mask [queries, S] or None, see kernels.attention.
    """

    queries: slice
    keys: slice | Tensor
    mask: Tensor | None


@dataclass(frozen=True)
class Batch:
    """The tensors of one step, equal on every rank.

    tokens [T], positions [T], slots [T] (where keys and values of each token go), logit_rows [B'] (the rows whose
    logits the sampler wants), all int64.
    """

    tokens: Tensor
    positions: Tensor
    slots: Tensor
    spans: list[Span]
    logit_rows: Tensor


def make_batch(step: Step, block_size: int, device: torch.device) -> Batch:
    """Return the batch of a step for a cache with blocks of block_size slots."""
    tokens: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    rows: list[int] = []
    spans = []
    for chunk in step.chunks:
        begin, end = len(tokens), len(tokens) + len(chunk.tokens)
        length = chunk.start + len(chunk.tokens)
        tokens += chunk.tokens
        positions += range(chunk.start, length)
        slots += [chunk.blocks[p // block_size] * block_size + p % block_size for p in range(chunk.start, length)]
        rows += range(end - chunk.num_logits, end)
        mask = causal_mask(end - begin, length, device)
        spans.append(Span(slice(begin, end), _key_slots(chunk, length, block_size, device), mask))
    as_tensor = [torch.tensor(values, dtype=torch.int64, device=device) for values in (tokens, positions, slots, rows)]
    return Batch(as_tensor[0], as_tensor[1], as_tensor[2], spans, as_tensor[3])


def _key_slots(chunk: Chunk, length: int, block_size: int, device: torch.device) -> slice | Tensor:
    """Return the slots of positions 0..length-1; a slice, which copies nothing, where the blocks are neighbours."""
    first, count = chunk.blocks[0], len(chunk.blocks)
    if chunk.blocks == list(range(first, first + count)):
        return slice(first * block_size, first * block_size + length)
    blocks = torch.tensor(chunk.blocks, dtype=torch.int64, device=device)
    return (blocks[:, None] * block_size + torch.arange(block_size, device=device)).flatten()[:length]
