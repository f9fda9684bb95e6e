"""The scheduler conserves blocks, starves nobody and keeps every answer's order of tokens."""

from __future__ import annotations

import random

import pytest

from ollampi.mpiruntime.block_manager import BlockManager
from ollampi.mpiruntime.errors import BusyError, ContextError, OllampiError
from ollampi.mpiruntime.request import GenerateRequest, ModelRef
from ollampi.mpiruntime.scheduler import Scheduler
from ollampi.mpiruntime.sequence import Sequence

MODEL = ModelRef("m:latest", "/m")


def sequence(length: int, context: int = 64, **fields: object) -> Sequence:
    request = GenerateRequest(MODEL, list(range(length)), **fields)  # type: ignore[arg-type]
    return Sequence(request, context=context, seed=1)


def run_step(scheduler: Scheduler, stored: dict[Sequence, list[int]]) -> list[Sequence]:
    """Play the model: note what is stored in the cache, append a token where logits were wanted; return the ended."""
    planned = scheduler.plan()
    assert sum(len(c.tokens) for _, c in planned) <= scheduler.max_step_tokens
    assert len({id(s) for s, _ in planned}) == len(planned)
    held = [b for _, c in planned for b in c.blocks]
    assert len(held) == len(set(held))  # no block belongs to two sequences
    ended = []
    for s, chunk in planned:
        have = stored.setdefault(s, [])
        del have[chunk.start :]
        have += chunk.tokens
        assert have == s.tokens[: len(have)]
        assert len(chunk.blocks) * scheduler.blocks.block_size >= len(have)
        scheduler.advance(s, chunk)
        if chunk.num_logits:
            assert len(have) == len(s.tokens)
            s.append(1000 + s.num_generated)
            scheduler.trim(s)
            if s.finish_reason:
                ended.append(s)
    for s in ended:
        scheduler.remove(s)
    scheduler.check()
    return ended


@pytest.mark.parametrize("seed", range(20))
def test_random_loads_end_with_exact_accounting(seed: int) -> None:
    rng = random.Random(seed)
    blocks = BlockManager(num_blocks=rng.randint(16, 40), block_size=rng.choice([1, 3, 4]))
    scheduler = Scheduler(blocks, max_step_tokens=rng.randint(4, 40), max_running=rng.randint(1, 6), max_waiting=99)
    todo = [
        sequence(
            rng.randint(1, 12), context=rng.randint(14, 40), max_tokens=rng.randint(1, 40), shift=rng.random() < 0.5
        )
        for _ in range(30)
    ]
    waiting, stored, ended, alive = list(todo), {}, [], []  # type: ignore[var-annotated]
    for _ in range(20000):
        while waiting and rng.random() < 0.5:
            alive.append(waiting.pop())
            try:
                scheduler.add(alive[-1])
            except ContextError:
                ended.append(alive[-1])
        if rng.random() < 0.02 and scheduler.running:
            victim = rng.choice(scheduler.running)
            scheduler.remove(victim)
            ended.append(victim)
        ended += run_step(scheduler, stored)
        if not waiting and scheduler.idle:
            break
    assert len(ended) == 30
    assert blocks.num_free == blocks.num_blocks


def test_running_answers_go_on_while_a_long_prompt_comes_in_pieces() -> None:
    scheduler = Scheduler(BlockManager(64, 4), max_step_tokens=8, max_running=4, max_waiting=4)
    first, long = sequence(3, max_tokens=20), sequence(40)
    scheduler.add(first)
    run_step(scheduler, {})
    scheduler.add(long)
    planned = scheduler.plan()
    assert [(s is first, len(c.tokens), c.num_logits) for s, c in planned] == [(True, 1, 1), (False, 7, 0)]


def test_first_come_first_served() -> None:
    scheduler = Scheduler(BlockManager(64, 4), max_step_tokens=100, max_running=2, max_waiting=9)
    several = [sequence(5) for _ in range(4)]
    for s in several:
        scheduler.add(s)
    assert [s for s, _ in scheduler.plan()] == several[:2]
    scheduler.remove(several[0])
    assert several[2] in [s for s, _ in scheduler.plan()]


def test_the_youngest_steps_back_when_the_cache_is_full() -> None:
    scheduler = Scheduler(BlockManager(4, 4), max_step_tokens=100, max_running=4, max_waiting=9)
    old, young = sequence(7, max_tokens=9), sequence(3, max_tokens=9)
    stored: dict[Sequence, list[int]] = {}
    scheduler.add(old)
    run_step(scheduler, stored)
    scheduler.add(young)
    for _ in range(4):
        run_step(scheduler, stored)
    assert scheduler.running == [old]
    assert list(scheduler.waiting) == [young]


def test_limits_are_refused_with_the_documented_texts() -> None:
    scheduler = Scheduler(BlockManager(4, 4), max_step_tokens=8, max_running=1, max_waiting=1)
    with pytest.raises(ContextError, match="16 tokens is longer than the context length currently available"):
        scheduler.add(sequence(16))
    scheduler.add(sequence(3))
    scheduler.add(sequence(3))
    with pytest.raises(BusyError, match=r"server busy, please try again\.  maximum pending requests exceeded"):
        scheduler.add(sequence(3))


def test_blocks_are_conserved() -> None:
    blocks = BlockManager(4, 16)
    taken = blocks.allocate(3)
    assert taken == [0, 1, 2]
    with pytest.raises(OllampiError, match="2 cache blocks wanted, 1 of 4 free"):
        blocks.allocate(2)
    blocks.release([1])
    with pytest.raises(OllampiError, match="released twice"):
        blocks.release([1])
    blocks.check([[0], [2]])
    with pytest.raises(OllampiError, match="accounting"):
        blocks.check([[0]])


def test_a_full_context_shifts_or_ends() -> None:
    shifting = sequence(6, context=8, keep_tokens=2)
    shifting.append(50)
    shifting.num_cached = 7
    shifting.append(51)
    assert shifting.tokens == [0, 1, 5, 50, 51]
    assert shifting.num_cached == 0
    assert shifting.finish_reason is None
    ending = sequence(6, context=8, shift=False)
    ending.append(50)
    ending.append(51)
    assert ending.finish_reason == "length"
