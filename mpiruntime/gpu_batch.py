"""Turn a step's integers into tensors on a GPU, in one transfer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ollampi.kernels.device_attention import Rows
from ollampi.mpiruntime.step import Chunk, Step

ALONE = 8  # the most new tokens of a sequence that look on their own: answers with their drafts
Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Prompt:
    """New tokens of a sequence that look together: queries, their rows in the step; slots int64 [S], of all so far."""

    queries: slice
    slots: Tensor


@dataclass(frozen=True)
class Looks:
    """How the tokens of a step look at the cache.

    rows: those that look on their own, and `places` int64 [R], where they are in the step, None for all in order;
    prompts: the others; both_ways: these see what is behind them too.
    """

    rows: Rows | None
    places: Tensor | None
    prompts: list[Prompt]
    both_ways: bool


@dataclass(frozen=True)
class GpuBatch:
    """The tensors of one step: as batch.Batch, but for how the tokens look."""

    tokens: Tensor
    positions: Tensor
    slots: Tensor
    looks: Looks
    logit_rows: Tensor
    pools: list[slice]


@dataclass(frozen=True)
class Answers:
    """A step in which every chunk is one token that wants logits: a row of numbers for each, so that steps look alike.

    each: int64 [B, 4 + M], token, position, slot, how many positions it sees, and its blocks. longest: of what it sees.
    """

    each: Numbers
    longest: int

    def padded(self, num_rows: int, num_blocks: int, spare_block: int, block_size: int) -> Numbers:
        """Return the numbers [num_rows, 4 + num_blocks]; rows that are added write to, and see, the spare block."""
        out = np.full((num_rows, 4 + num_blocks), spare_block, np.int64)
        out[:, :4] = 0, 0, spare_block * block_size, 1
        count, width = self.each.shape
        out[:count, :width] = self.each
        return out


def answers(step: Step, block_size: int) -> Answers | None:
    """Return a step as such rows, None where it has other chunks too."""
    if any(len(c.tokens) != 1 or c.num_logits != 1 or c.num_pooled for c in step.chunks):
        return None
    longest = max(chunk.start for chunk in step.chunks) + 1
    each = np.zeros((len(step.chunks), 4 + -(-longest // block_size)), np.int64)
    for row, chunk in zip(each, step.chunks, strict=True):
        used = chunk.start // block_size + 1
        row[:4] = (
            chunk.tokens[0],
            chunk.start,
            _slots(chunk, chunk.start, chunk.start + 1, block_size)[0],
            chunk.start + 1,
        )
        row[4 : 4 + used] = chunk.blocks[:used]
    return Answers(each, longest)


def answers_batch(each: Tensor, longest: int) -> GpuBatch:
    """Return the batch of rows int64 [B, 4 + M] as `Answers` has them, on their device."""
    tokens, positions, slots, seen = (each[:, i].contiguous() for i in range(4))
    rows = Rows(each[:, 4:].int().contiguous(), seen.int(), longest)
    return GpuBatch(tokens, positions, slots, Looks(rows, None, [], False), _count(len(each), each.device), [])


def make_gpu_batch(step: Step, block_size: int, device: torch.device, both_ways: bool = False) -> GpuBatch:
    """Return the batch of a step for a cache with blocks of block_size slots.

    both_ways: tokens see those behind them too, as far as they are in the step.
    """
    plain = None if both_ways else answers(step, block_size)
    if plain is not None:
        return answers_batch(on_device([plain.each.ravel()], device)[0].view(plain.each.shape), plain.longest)
    tokens, positions, slots, wanted, places, seen = (list[int]() for _ in range(6))
    tables: list[list[int]] = []
    prompts: list[tuple[slice, Numbers]] = []
    pools: list[slice] = []
    for chunk in step.chunks:
        first, end = len(tokens), chunk.start + len(chunk.tokens)
        tokens += chunk.tokens
        positions += range(chunk.start, end)
        of_chunk = _slots(chunk, 0, end, block_size)
        slots += of_chunk[chunk.start :].tolist()
        wanted += range(len(tokens) - chunk.num_logits, len(tokens))
        if chunk.num_pooled:
            last = len(tokens) - chunk.num_behind
            pools.append(slice(last - chunk.num_pooled, last))
        if both_ways or len(chunk.tokens) > ALONE:
            prompts.append((slice(first, len(tokens)), of_chunk))
            continue
        places += range(first, len(tokens))
        seen += range(chunk.start + 1, end + 1)
        tables += [chunk.blocks[: -(-end // block_size)]] * len(chunk.tokens)
    width = max(map(len, tables), default=0)
    table = np.array([blocks + [0] * (width - len(blocks)) for blocks in tables], np.int64).reshape(-1)
    flat = [np.array(x, np.int64) for x in (tokens, positions, slots, wanted, places, seen)]
    moved = on_device([*flat, table, *(own for _, own in prompts)], device)
    rows = Rows(moved[6].view(len(tables), -1).int(), moved[5].int(), max(seen)) if tables else None
    of_prompts = [Prompt(queries, own) for (queries, _), own in zip(prompts, moved[7:], strict=True)]
    looks = Looks(rows, moved[4] if prompts else None, of_prompts, both_ways)
    return GpuBatch(moved[0], moved[1], moved[2], looks, moved[3], pools)


def on_device(parts: Sequence[Numbers], device: torch.device) -> list[Tensor]:
    """Return vectors of integers on a device, in one transfer from memory that the device reads by itself."""
    joined = torch.from_numpy(np.concatenate(parts))
    if device.type == "cuda":
        joined = joined.pin_memory()
    return list(torch.split(joined.to(device, non_blocking=True), [len(part) for part in parts]))


def _slots(chunk: Chunk, first: int, end: int, block_size: int) -> Numbers:
    """Return the slots of some positions of a sequence."""
    positions = np.arange(first, end)
    found: Numbers = np.array(chunk.blocks, np.int64)[positions // block_size] * block_size + positions % block_size
    return found


def _count(size: int, device: torch.device) -> Tensor:
    """Return 0 to size - 1."""
    return torch.arange(size, device=device)
