"""Blocks behave as a simple model of them does, and broken accounting of any kind is noticed."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from ollampi.mpiruntime import block_manager
from ollampi.mpiruntime.block_manager import BlockManager, block_digest
from ollampi.mpiruntime.errors import OllampiError


def digest(number: int) -> bytes:
    return block_digest(b"", [number])


class Model:
    """What the manager should do, in the plainest way: lists that are searched from end to end."""

    def __init__(self, num_blocks: int) -> None:
        self.holders = [0] * num_blocks
        self.content: list[bytes | None] = [None] * num_blocks
        self.released: list[int] = []  # blocks with content that nobody holds, the oldest first

    def free(self) -> list[int]:
        """Return free blocks in the order in which they go."""
        blank = [b for b, count in enumerate(self.holders) if not count and self.content[b] is None]
        return blank + self.released

    def allocate(self, count: int) -> list[int]:
        taken = self.free()[:count]
        for block in taken:
            self.content[block] = None
            self.holders[block] = 1
        self.released = [b for b in self.released if b not in taken]
        return taken

    def share(self, digests: list[bytes]) -> list[int]:
        shared = []
        for wanted in digests:
            if wanted not in self.content:
                break
            shared.append(self.content.index(wanted))
            self.holders[shared[-1]] += 1
        self.released = [b for b in self.released if b not in shared]
        return shared

    def name(self, block: int, wanted: bytes) -> None:
        if self.content[block] is None and wanted not in self.content:
            self.content[block] = wanted

    def forget(self, blocks: list[int]) -> None:
        for block in blocks:
            self.content[block] = None

    def release(self, blocks: list[int]) -> None:
        for block in reversed(blocks):
            self.holders[block] -= 1
            if not self.holders[block] and self.content[block] is not None:
                self.released.append(block)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("look", [1, 3, 2048])
def test_random_operations_do_what_the_model_does(seed: int, look: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_manager, "_LOOK", look)
    draw = random.Random(seed)
    size = draw.randint(1, 20)
    blocks, model = BlockManager(size, 4), Model(size)
    tables: list[list[int]] = []
    for _ in range(300):
        kind = draw.random()
        if kind < 0.3:
            count = draw.randint(0, 5)
            if count > len(model.free()):
                with pytest.raises(OllampiError, match=f"{count} cache blocks wanted, {len(model.free())} of {size}"):
                    blocks.allocate(count)
            else:
                tables.append(blocks.allocate(count))
                assert tables[-1] == model.allocate(count)
        elif kind < 0.5:
            start = draw.randint(0, 9)
            wanted = [digest(n) for n in range(start, start + draw.randint(0, 4))]
            tables.append(blocks.share(wanted))
            assert tables[-1] == model.share(wanted)
        elif tables and kind < 0.7:
            for block in draw.choice(tables):
                wanted_name = digest(draw.randint(0, 12))
                blocks.name(block, wanted_name)
                model.name(block, wanted_name)
        elif tables:
            table = tables.pop(draw.randrange(len(tables)))
            if kind < 0.75:
                blocks.forget(table)
                model.forget(table)
            blocks.release(table)
            model.release(table)
        assert blocks.num_free == len(model.free())
        blocks.check(tables)
    for table in tables:
        blocks.release(table)
    assert blocks.num_free == size
    looked = 1
    while not blocks.check([]):
        looked += 1
    assert looked <= -(-size // look)


def test_lasting_blocks_come_in_turn_with_another_number_for_each_name() -> None:
    blocks = BlockManager(8, 4)
    table = blocks.allocate(6)
    for block in table[:5]:
        blocks.name(block, digest(block))
    blocks.name(table[5], digest(0))  # another block has this content
    first = dict(blocks.lasting(3)) | dict(blocks.lasting(2))
    assert sorted(first) == table[:5]
    assert [block for block, _ in blocks.lasting(9)] == table[:5]
    blocks.forget([1])
    assert sorted(dict(blocks.lasting(9))) == [0, 2, 3, 4]
    blocks.name(1, digest(1))
    again = dict(blocks.lasting(9))
    assert again[1] not in first.values()
    assert {block: again[block] for block in (0, 2, 3, 4)} == {block: first[block] for block in (0, 2, 3, 4)}
    blocks.release(table)
    blocks.allocate(8)  # what they held is gone
    assert blocks.lasting(9) == []


def check_all(blocks: BlockManager, tables: list[list[int]]) -> None:
    """Look at every block."""
    while not blocks.check(tables):
        pass


def busy_manager() -> tuple[BlockManager, list[list[int]]]:
    """Return a manager with held, shared, blank, kept and unused blocks, and the tables of those who hold some."""
    blocks = BlockManager(12, 4)
    first = blocks.allocate(8)
    for block in first[:6]:
        blocks.name(block, digest(block))
    second = blocks.share([digest(0), digest(1)])
    blocks.release(first[4:])  # 4 and 5 are kept, 6 and 7 blank
    return blocks, [first[:4], second]


def swap_digests(blocks: BlockManager) -> None:
    blocks._set_digest(0, digest(1))
    blocks._set_digest(1, digest(0))


CORRUPTIONS: dict[str, Callable[[BlockManager], object]] = {
    "a holder too many": lambda b: b._holders.__setitem__(0, 3),
    "a holder too few": lambda b: b._holders.__setitem__(2, 0),
    "a holder of a blank block": lambda b: b._holders.__setitem__(6, 1),
    "a holder of a kept block": lambda b: b._holders.__setitem__(4, 1),
    "a blank block lost": lambda b: b._blank.pop(),
    "a blank block twice": lambda b: b._blank.append(6),
    "a blank block twice in place of another": lambda b: b._blank.__setitem__(1, 6),
    "a held block blank": lambda b: b._blank.append(2),
    "a held block blank in place of another": lambda b: b._blank.__setitem__(1, 2),
    "a block blank that was never used": lambda b: b._blank.append(9),
    "a block blank that there is not": lambda b: b._blank.append(12),
    "a negative block blank": lambda b: b._blank.append(-1),
    "a kept block lost": lambda b: b._kept.popitem(),
    "a held block kept": lambda b: b._kept.__setitem__(2, None),
    "a kept block replaced": lambda b: (b._kept.popitem(), b._kept.__setitem__(2, None)),
    "a kept block blank as well": lambda b: b._blank.append(4),
    "a kept block blank instead": lambda b: (b._kept.pop(4), b._blank.append(4)),
    "a blank block kept instead": lambda b: (b._blank.remove(6), b._kept.__setitem__(6, None)),
    "a content without block": lambda b: b._with.__setitem__(digest(77), 3),
    "a content of another block": lambda b: b._with.__setitem__(digest(0), 3),
    "a content not found": lambda b: b._with.pop(digest(0)),
    "a content renamed": lambda b: (b._with.pop(digest(0)), b._with.__setitem__(digest(77), 0)),
    "a digest lost": lambda b: b._set_digest(0, block_manager._NO_DIGEST),
    "a digest too many": lambda b: b._set_digest(6, digest(77)),
    "two digests swapped": swap_digests,
    "an unused block counted as used": lambda b: b._holders.append(0),
    "a digest cut off": lambda b: b._digests.pop(),
}


@pytest.mark.parametrize("kind", CORRUPTIONS)
@pytest.mark.parametrize("look", [1, 2048])
def test_every_kind_of_corruption_is_found(kind: str, look: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_manager, "_LOOK", look)
    blocks, tables = busy_manager()
    check_all(blocks, tables)
    CORRUPTIONS[kind](blocks)
    with pytest.raises(OllampiError, match="the accounting of 12 cache blocks is broken"):
        check_all(blocks, tables)


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t[0].pop(),
        lambda t: t[0].append(6),
        lambda t: t[0].append(4),
        lambda t: t[1].append(9),
        lambda t: t[1].append(12),
        lambda t: t[1].append(-1),
        lambda t: t.pop(),
        lambda t: t[0].__setitem__(2, 3),
    ],
)
def test_a_table_that_does_not_fit_is_found(change: Callable[[list[list[int]]], object]) -> None:
    blocks, tables = busy_manager()
    change(tables)
    with pytest.raises(OllampiError, match="the accounting of 12 cache blocks is broken"):
        blocks.check(tables)


def test_a_cache_that_nobody_uses_costs_nothing() -> None:
    blocks = BlockManager(1 << 40, 16)
    assert blocks.num_free == 1 << 40
    assert blocks.allocate(3) == [0, 1, 2]
    assert blocks.check([[0, 1, 2]])
