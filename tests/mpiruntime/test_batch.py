"""A batch addresses the right slots, and attention over it is attention over each sequence alone."""

from __future__ import annotations

import random

import pytest
import torch

from ollampi.kernels.attention import Scoring, attend
from ollampi.mpiruntime.batch import make_batch
from ollampi.mpiruntime.kv_cache import KVCache
from ollampi.mpiruntime.step import Chunk, Step

BLOCK, LAYERS, KV_HEADS, SIZE = 4, 2, 2, 8
CPU = torch.device("cpu")


def random_step(rng: random.Random, num_blocks: int) -> Step:
    """Return a step of sequences of all lengths, some neighbours in memory, some not."""
    free = list(range(num_blocks))
    if rng.random() < 0.7:
        rng.shuffle(free)
    chunks = []
    for _ in range(rng.randint(1, 9)):
        start, count = rng.choice([0, 1, 3, 8, 17, 18, 19, 40]), rng.choice([1, 1, 1, 2, 5])
        blocks = [free.pop() for _ in range(-(-(start + count) // BLOCK))]
        chunks.append(Chunk([rng.randrange(9) for _ in range(count)], start, blocks, 1))
    return Step(0, chunks)


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("kv_of_head", [None, [0, 0, 1]])
@pytest.mark.parametrize("kept", ["float32", "int8"])
@pytest.mark.parametrize(("window", "both_ways"), [(None, False), (1, False), (4, False), (20, False), (None, True)])
def test_attention_over_a_batch_is_that_of_each_sequence(
    seed: int, kv_of_head: list[int] | None, kept: str, window: int | None, both_ways: bool
) -> None:
    rng = random.Random(seed)
    torch.manual_seed(seed)
    cache = KVCache(LAYERS, 120, BLOCK, KV_HEADS, SIZE, torch.float32, kept)
    nothing = torch.full((120 * BLOCK, KV_HEADS, SIZE), torch.nan)
    cache.write(1, torch.arange(120 * BLOCK), nothing, nothing)  # what no sequence of the step wrote must not be seen
    step = random_step(rng, 120)
    for chunk in step.chunks:
        slots = [chunk.blocks[p // BLOCK] * BLOCK + p % BLOCK for p in range(chunk.start + len(chunk.tokens))]
        cache.write(1, torch.tensor(slots), *torch.randn(2, len(slots), KV_HEADS, SIZE))
    num_heads = len(kv_of_head) if kv_of_head else 6
    index = torch.tensor(kv_of_head or [h // 3 for h in range(num_heads)])
    batch = make_batch(step, BLOCK, cache.slot_bytes, CPU, both_ways=both_ways)
    scoring = Scoring(SIZE**-0.5, None, window)
    q = torch.randn(len(batch.tokens), num_heads, SIZE)
    mixed = torch.full_like(q, torch.nan)
    for span in batch.spans:
        keys, values = cache.read(1, span.keys, span.num_sequences)
        of_head = index if kv_of_head else None
        mixed[span.queries] = attend(q[span.queries], keys, values, span.mask(window), of_head, scoring)
    row = 0
    for chunk in step.chunks:
        for offset in range(len(chunk.tokens)):
            own = chunk.start + offset
            end = chunk.start + len(chunk.tokens) if both_ways else own + 1
            first = 0 if window is None else max(0, end - window)
            slots = [chunk.blocks[p // BLOCK] * BLOCK + p % BLOCK for p in range(first, end)]
            keys, values = (x[0][:, index] for x in cache.read(1, torch.tensor(slots), 1))
            weights = torch.einsum("hd,shd->hs", q[row], keys).div(SIZE**0.5).softmax(-1)
            torch.testing.assert_close(mixed[row], torch.einsum("hs,shd->hd", weights, values))
            assert int(batch.slots[row]) == slots[own - first]
            assert int(batch.positions[row]) == own
            row += 1
    assert row == len(q)


def test_many_short_sequences_attend_in_few_groups() -> None:
    chunks = [Chunk([1], 40 + n % 7, list(range(12 * n, 12 * n + 12)), 1) for n in range(64)]
    batch = make_batch(Step(0, chunks), BLOCK, 256, CPU)
    assert len(batch.spans) == 1
    assert len(make_batch(Step(0, chunks), BLOCK, 1 << 20, CPU).spans) == 64
    long = Chunk([1], 400, list(range(900, 1001)), 1)
    assert [s.num_sequences for s in make_batch(Step(0, [*chunks[:9], long, *chunks[9:]]), BLOCK, 256, CPU).spans] == [
        9,
        1,
        55,
    ]
