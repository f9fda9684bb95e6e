"""The scheduler conserves blocks, starves nobody and keeps every answer's order of tokens."""

from __future__ import annotations

import random

import pytest

from ollampi.mpiruntime.block_manager import BlockManager, block_digest
from ollampi.mpiruntime.errors import BusyError, ContextError, OllampiError
from ollampi.mpiruntime.request import GenerateRequest, ModelRef
from ollampi.mpiruntime.scheduler import Scheduler
from ollampi.mpiruntime.sequence import Sequence

MODEL = ModelRef("m:latest", "/m")


def sequence(length: int, context: int = 64, first: int = 0, **fields: object) -> Sequence:
    request = GenerateRequest(MODEL, list(range(first, first + length)), **fields)  # type: ignore[arg-type]
    return Sequence(request, context=context, seed=1)


def next_token(s: Sequence) -> int:
    return 1000 + s.num_generated


def draft(scheduler: Scheduler, rng: random.Random) -> None:
    """Give running answers drafts of which some first ones are right."""
    for s in scheduler.running:
        if s.pending == 1:
            right, wrong = rng.randint(0, 4), rng.randint(0, 3)
            s.drafts = [*range(next_token(s), next_token(s) + right), *[7] * wrong][: s.draft_room]


def run_step(scheduler: Scheduler, memory: dict[int, int], rng: random.Random | None = None) -> list[Sequence]:
    """Play the model on a cache `memory` of slot -> token: store, check what attention would read, append tokens.

    Return the sequences that ended.
    """
    if rng is not None:
        draft(scheduler, rng)
    planned = scheduler.plan()
    assert sum(len(c.tokens) for _, c in planned) <= scheduler.max_step_tokens
    assert len({id(s) for s, _ in planned}) == len(planned)
    size = scheduler.blocks.block_size
    slots = {s: [c.blocks[p // size] * size + p % size for p in range(c.start + len(c.tokens))] for s, c in planned}
    written = [slot for s, c in planned for slot in slots[s][c.start :]]
    assert len(written) == len(set(written))  # no two sequences write the same slot
    for s, chunk in planned:
        memory.update(zip(slots[s][chunk.start :], chunk.tokens, strict=True))
    ended = []
    for s, chunk in planned:
        drafts = s.drafts if chunk.num_logits > 1 else []
        assert len(drafts) == max(0, chunk.num_logits - 1)
        assert [memory[slot] for slot in slots[s]] == (s.tokens + drafts)[: len(slots[s])]
        scheduler.advance(s, len(chunk.tokens) - len(drafts))
        if chunk.num_logits:
            assert len(slots[s]) == len(s.tokens) + len(drafts)
            accept(scheduler, s, drafts)
            if s.finish_reason:
                ended.append(s)
        s.drafts = []
    for s in ended:
        scheduler.remove(s)
    scheduler.check()
    return ended


def accept(scheduler: Scheduler, s: Sequence, drafts: list[int]) -> None:
    """Append the next token, and more as long as they were drafted."""
    accepted = 0
    for drafted in [*drafts, None]:
        token = next_token(s)
        s.append(token)
        if token != drafted or s.finish_reason or not s.num_cached:
            break
        accepted += 1
    if s.num_cached:
        scheduler.advance(s, accepted)
    scheduler.trim(s)


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
    waiting, memory, ended, alive = list(todo), {}, [], []  # type: ignore[var-annotated]
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
        ended += run_step(scheduler, memory, rng)
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
    several = [sequence(5, first=100 * n) for n in range(4)]
    for s in several:
        scheduler.add(s)
    assert [s for s, _ in scheduler.plan()] == several[:2]
    scheduler.remove(several[0])
    assert several[2] in [s for s, _ in scheduler.plan()]


def test_a_beginning_that_is_being_computed_is_waited_for_and_others_pass() -> None:
    scheduler = Scheduler(BlockManager(64, 4), max_step_tokens=8, max_running=9, max_waiting=9)
    first, same, other = sequence(14), sequence(14), sequence(2, first=50)
    for s in (first, same, other):
        scheduler.add(s)
    memory: dict[int, int] = {}
    run_step(scheduler, memory)
    assert list(scheduler.waiting) == [same, other]
    run_step(scheduler, memory)
    assert list(scheduler.waiting) == [same]
    ((_, _), (_, _), (s, chunk)) = scheduler.plan()
    assert (s, chunk.start, len(chunk.tokens)) == (same, 12, 2)


def test_who_waits_for_a_beginning_goes_on_when_its_maker_is_gone() -> None:
    scheduler = Scheduler(BlockManager(64, 4), max_step_tokens=8, max_running=9, max_waiting=9)
    first, same = sequence(14), sequence(14)
    scheduler.add(first)
    scheduler.add(same)
    run_step(scheduler, {})
    scheduler.remove(first)
    ((s, chunk),) = scheduler.plan()
    assert (s, chunk.start) == (same, 8)


def test_prompts_leave_running_answers_the_time_that_they_are_promised() -> None:
    scheduler = Scheduler(
        BlockManager(64, 4), max_step_tokens=50, max_running=4, max_waiting=4, prompt_room=lambda decoding: 5 * decoding
    )
    scheduler.add(sequence(40))
    assert [len(c.tokens) for _, c in scheduler.plan()] == [40]  # nobody is held up
    run_step(scheduler, {})
    scheduler.add(sequence(30, first=100))
    assert [len(c.tokens) for _, c in scheduler.plan()] == [1, 5]


def test_drafts_take_no_block_that_an_answer_needs() -> None:
    scheduler = Scheduler(BlockManager(4, 4), max_step_tokens=50, max_running=4, max_waiting=4)
    one, two = sequence(4, max_tokens=50), sequence(4, first=9, max_tokens=50)
    memory: dict[int, int] = {}
    scheduler.add(one)
    scheduler.add(two)
    run_step(scheduler, memory)
    one.drafts, two.drafts = [1, 2, 3, 4, 5], [1, 2, 3, 4, 5]
    assert [c.num_logits for _, c in scheduler.plan()] == [4, 4]  # what fits into the block of their next token
    scheduler.check()


def test_the_youngest_steps_back_when_the_cache_is_full() -> None:
    scheduler = Scheduler(BlockManager(4, 4), max_step_tokens=100, max_running=4, max_waiting=9)
    old, young = sequence(7, max_tokens=9), sequence(3, max_tokens=9)
    memory: dict[int, int] = {}
    scheduler.add(old)
    run_step(scheduler, memory)
    scheduler.add(young)
    for _ in range(4):
        run_step(scheduler, memory)
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


def test_a_beginning_that_is_in_the_cache_is_not_computed_again() -> None:
    scheduler = Scheduler(BlockManager(16, 4), max_step_tokens=64, max_running=4, max_waiting=4)
    memory: dict[int, int] = {}
    scheduler.add(sequence(11, max_tokens=1))
    run_step(scheduler, memory)
    for length, shared in ((11, 8), (14, 8), (14, 12), (8, 4), (3, 0)):  # at least one token is always computed
        again = sequence(length, max_tokens=1)
        scheduler.add(again)
        ((_, chunk),) = scheduler.plan()
        assert (chunk.start, len(chunk.tokens)) == (shared, length - shared)
        scheduler.advance(again, len(chunk.tokens))
        scheduler.remove(again)
        scheduler.check()


def test_running_sequences_share_a_beginning_and_outlive_each_other() -> None:
    scheduler = Scheduler(BlockManager(8, 4), max_step_tokens=64, max_running=4, max_waiting=4)
    memory: dict[int, int] = {}
    first, second = sequence(9, max_tokens=3), sequence(9, max_tokens=12)
    scheduler.add(first)
    run_step(scheduler, memory)
    scheduler.add(second)
    run_step(scheduler, memory)
    assert first.blocks[:2] == second.blocks[:2]
    assert first.blocks[2] != second.blocks[2]
    assert scheduler.blocks.num_free == 8 - 4
    while not scheduler.idle:
        run_step(scheduler, memory)
    assert scheduler.blocks.num_free == 8


def test_the_oldest_content_goes_first_and_the_end_of_a_text_before_its_beginning() -> None:
    blocks = BlockManager(4, 1)
    digests = [block_digest(b"", [n]) for n in range(4)]
    taken = blocks.allocate(4)
    for block, digest in zip(taken, digests, strict=True):
        blocks.name(block, digest)
    blocks.release(taken[2:])
    blocks.release(taken[:2])
    assert blocks.share(digests[:1]) == [0]  # used again, so it is the youngest
    blocks.release([0])
    assert blocks.allocate(3) == [3, 2, 1]
    assert blocks.share(digests) == [0]
    blocks.check([[3, 2, 1], [0]])


def test_what_a_spoilt_sequence_left_is_not_shared() -> None:
    scheduler = Scheduler(BlockManager(16, 4), max_step_tokens=64, max_running=4, max_waiting=4)
    spoilt, again = sequence(11), sequence(11)
    scheduler.add(spoilt)
    ((_, chunk),) = scheduler.plan()
    scheduler.advance(spoilt, len(chunk.tokens))
    scheduler.remove(spoilt, spoilt=True)
    scheduler.add(again)
    ((_, chunk),) = scheduler.plan()
    assert chunk.start == 0
    scheduler.check()


def test_digests_name_the_whole_text_up_to_a_block() -> None:
    one = block_digest(block_digest(b"", [1, 2]), [3, 4])
    assert one == block_digest(block_digest(b"", [1, 2]), [3, 4])
    assert len({one, block_digest(block_digest(b"", [2, 1]), [3, 4]), block_digest(b"", [3, 4])}) == 3
