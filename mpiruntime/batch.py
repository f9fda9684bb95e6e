"""Turn a step's integers into the tensors of one forward pass."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from ollampi.kernels.paged_attention import Pieces
from ollampi.mpiruntime.halves import halves
from ollampi.mpiruntime.step import Chunk, Step

_GROUP_BYTES = 1 << 20  # of keys that are copied together: what stays in a core's cache until it is used
_WORST_PADDING = 2  # a group's longest sequence against its shortest


@dataclass(frozen=True)
class Span:
    """Sequences that attend together: one with all its new tokens, or several with one token each.

    queries: their rows among the T tokens; keys: the cache slots of all positions so far, of the one sequence as a
    slice where they are neighbours, or else of N sequences as indices [N * S]; seen: int64 [N, T], how many positions
    each query sees.
    """

    queries: slice
    keys: slice | Tensor
    num_sequences: int
    seen: Tensor
    _masks: dict[int | None, Tensor | None] = field(default_factory=dict)

    def mask(self, window: int | None) -> Tensor | None:
        """Return the mask [N, 1, T, S] as kernels.attention wants it, where a query sees at most `window` positions."""
        if window not in self._masks:
            self._masks[window] = self._mask(window)
        return self._masks[window]

    def _mask(self, window: int | None) -> Tensor | None:
        """Return what `mask` returns."""
        length = int(self.seen.max())
        if length == int(self.seen.min()) and (window is None or window >= length):
            return None
        positions, ends = torch.arange(length, device=self.seen.device), self.seen[:, :, None]
        visible = positions < ends
        if window is not None:
            visible &= positions >= ends - window
        return visible[:, None]


@dataclass(frozen=True)
class Batch:
    """The tensors of one step, equal on every rank.

    tokens [T], positions [T], slots [T] (where keys and values of each token go), logit_rows [B'] (the rows whose
    logits the sampler wants), all int64; pieces: what attends natively, None where torch
    does it, as spans; pools: the runs of rows whose hidden states are added up. Of several batches of a step the first
    has the rows and pools of all, counted through.
    """

    tokens: Tensor
    positions: Tensor
    slots: Tensor
    spans: list[Span]
    pieces: Pieces | None
    logit_rows: Tensor
    pools: list[slice]


def make_batches(
    step: Step,
    block_size: int,
    slot_bytes: int,
    device: torch.device,
    piece: int = 0,
    both_ways: bool = False,
) -> list[Batch]:
    """Return the batch of a step, or those of its halves; arguments as for make_batch."""
    if not step.halved:
        return [make_batch(step, block_size, slot_bytes, device, piece, both_ways)]
    parts = [make_batch(half, block_size, slot_bytes, device, piece, both_ways) for half in halves(step, both_ways)]
    rows, pools = _wanted(step.chunks)
    return [replace(parts[0], logit_rows=torch.tensor(rows, dtype=torch.int64, device=device), pools=pools), *parts[1:]]


def make_batch(
    step: Step, block_size: int, slot_bytes: int, device: torch.device, piece: int = 0, both_ways: bool = False
) -> Batch:
    """Return the batch of a step for a cache with blocks of block_size slots of slot_bytes of keys in a layer.

    piece: the most tokens that attend together natively, 0 where torch does it; both_ways: tokens see those behind
    them too, as far as they are in the step.
    """
    tokens: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    for chunk in step.chunks:
        length = _length(chunk)
        tokens += chunk.tokens
        positions += range(chunk.start, length)
        slots += [chunk.blocks[p // block_size] * block_size + p % block_size for p in range(chunk.start, length)]
    rows, pools = _wanted(step.chunks)
    as_tensor = [torch.tensor(values, dtype=torch.int64, device=device) for values in (tokens, positions, slots, rows)]
    made = Batch(as_tensor[0], as_tensor[1], as_tensor[2], [], None, as_tensor[3], pools)
    if piece:
        return replace(made, pieces=_pieces(step.chunks, piece, both_ways))
    begin = 0
    for group in _groups(step.chunks, slot_bytes):
        end = begin + sum(len(chunk.tokens) for chunk in group)
        made.spans.append(_span(slice(begin, end), group, block_size, device, both_ways))
        begin = end
    return made


def _wanted(chunks: list[Chunk]) -> tuple[list[int], list[slice]]:
    """Return the rows whose logits are wanted, and the runs of rows that are pooled."""
    rows: list[int] = []
    pools: list[slice] = []
    end = 0
    for chunk in chunks:
        end += len(chunk.tokens)
        rows += range(end - chunk.num_logits, end)
        if chunk.num_pooled:
            last = end - chunk.num_behind
            pools.append(slice(last - chunk.num_pooled, last))
    return rows, pools


def _pieces(chunks: list[Chunk], most: int, both_ways: bool) -> Pieces:
    """Return the chunks in pieces of at most so many tokens."""
    each, blocks = array("q"), array("q")
    token = num_positions = 0
    for chunk in chunks:
        for start in range(chunk.start, _length(chunk), most):
            count = min(most, _length(chunk) - start)
            whole = _length(chunk) if both_ways else 0
            each.extend((token, count, start, len(blocks), whole))
            num_positions += count * whole if whole else count * start + count * (count + 1) // 2
            token += count
        blocks.extend(chunk.blocks)
    return Pieces(torch.from_numpy(np.array(each)).view(-1, 5), torch.from_numpy(np.array(blocks)), num_positions)


def _length(chunk: Chunk) -> int:
    """Return how many positions of a sequence are known after the step."""
    return chunk.start + len(chunk.tokens)


def _groups(chunks: list[Chunk], slot_bytes: int) -> Iterator[list[Chunk]]:
    """Yield the chunks, in order, in groups that attend together."""
    group: list[Chunk] = []
    shortest = longest = 0
    for chunk in chunks:
        length = _length(chunk)
        low, high = min(shortest, length), max(longest, length)
        if (
            not group
            or len(chunk.tokens) > 1
            or len(group[0].tokens) > 1
            or high > _WORST_PADDING * low
            or (len(group) + 1) * high * slot_bytes > _GROUP_BYTES
        ):
            if group:
                yield group
            group, low, high = [], length, length
        group.append(chunk)
        shortest, longest = low, high
    if group:
        yield group


def _span(queries: slice, group: list[Chunk], block_size: int, device: torch.device, both_ways: bool) -> Span:
    """Return the span of a group of chunks."""
    lengths = [_length(chunk) for chunk in group]
    count = len(group[0].tokens)
    ends = torch.tensor(lengths, device=device)[:, None]
    seen = ends.expand(-1, count) if both_ways else ends + torch.arange(1 - count, 1, device=device)
    first, num_blocks = group[0].blocks[0], len(group[0].blocks)
    if len(group) == 1 and group[0].blocks == list(range(first, first + num_blocks)):
        return Span(queries, slice(first * block_size, first * block_size + lengths[0]), 1, seen)
    return Span(queries, _key_slots(group, lengths, block_size, device), len(group), seen)


def _key_slots(group: list[Chunk], lengths: list[int], block_size: int, device: torch.device) -> Tensor:
    """Return the slots [N * S] of positions 0..S-1 of N sequences.

    A shorter one repeats its last position, which is sound memory: weights of 0 do not hide values that are not finite.
    """
    most = max(len(chunk.blocks) for chunk in group)
    blocks = torch.tensor([chunk.blocks + [0] * (most - len(chunk.blocks)) for chunk in group], device=device)
    last = torch.tensor(lengths, device=device)[:, None] - 1
    positions = torch.minimum(torch.arange(max(lengths), device=device)[None], last)
    return (blocks.gather(1, positions // block_size) * block_size + positions % block_size).flatten()
