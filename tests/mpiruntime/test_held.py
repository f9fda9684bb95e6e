"""Rows of logits wait for their masks, and no other row does."""

from __future__ import annotations

from typing import Any

import numpy as np

from ollampi.mpiruntime.guides import Guide, Guides
from ollampi.mpiruntime.held import HeldRows
from ollampi.mpiruntime.request import GenerateRequest, ModelRef
from ollampi.mpiruntime.sequence import Sequence
from ollampi.mpiruntime.step import Chunk


class Silent(Guides):
    """Guides without a process: whoever waits for them waits in vain."""

    def wait_for(self, guides: Any, timeout_s: float) -> None:
        """Wait for nobody."""


def plain() -> Sequence:
    sequence = Sequence(GenerateRequest(ModelRef("m", "/m"), [1]), context=9, seed=0)
    sequence.num_cached = 1
    return sequence


def guided(guides: Guides) -> Sequence:
    sequence = plain()
    sequence.guide = Guide(guides, {"id": 0, "tokens": []})
    return sequence


def rows(*sequences: tuple[Sequence, int]) -> list[tuple[Sequence, Chunk]]:
    return [(sequence, Chunk([1], 0, [0], num_logits)) for sequence, num_logits in sequences]


def allow(sequence: Sequence, num_masks: int = 1) -> None:
    assert sequence.guide is not None
    sequence.guide.take({"masks": [None] * num_masks, "forced": [], "end": False})


def test_a_late_mask_holds_its_own_row_and_no_other() -> None:
    guides = Silent()
    held = HeldRows(guides)
    drafted, late, dropped, back = plain(), guided(guides), guided(guides), guided(guides)
    logits = np.arange(10, dtype=np.float32).reshape(5, 2)
    planned, kept = held.sift(0, rows((late, 1), (drafted, 2), (dropped, 1), (back, 1)), logits)
    assert [sequence for sequence, _ in planned] == [drafted]
    assert kept.tolist() == [[2, 3], [4, 5]]
    for sequence in (late, dropped, back):
        allow(sequence)
    held.drop(0, dropped)
    back.num_cached = 0  # it stepped back, and is computed again
    assert held.release(1)[0] == []
    planned, kept = held.release(0)
    assert [sequence for sequence, _ in planned] == [late]
    assert kept.tolist() == [[0, 1]]
    assert held.release(0)[0] == []


def test_a_row_that_was_computed_again_replaces_the_one_that_waits() -> None:
    guides = Silent()
    held, late = HeldRows(guides), guided(guides)
    held.sift(0, rows((late, 1)), np.zeros((1, 2), np.float32))
    allow(late)
    planned, kept = held.sift(0, rows((late, 1)), np.ones((1, 2), np.float32))
    assert (planned[0][0], kept.tolist()) == (late, [[1, 1]])
    assert held.release(0)[0] == []


def test_rows_of_a_draft_wait_together_and_are_as_many_as_the_grammar_allows() -> None:
    guides = Silent()
    held, late, prompt = HeldRows(guides), guided(guides), guided(guides)
    allow(prompt, 2)
    planned, kept = held.sift(0, rows((late, 3), (prompt, 3)), np.arange(12, dtype=np.float32).reshape(6, 2))
    assert [(sequence, chunk.num_logits) for sequence, chunk in planned] == [(prompt, 2)]
    assert kept.tolist() == [[6, 7], [8, 9]]
    allow(late, 2)
    planned, kept = held.release(0)
    assert [(sequence, chunk.num_logits) for sequence, chunk in planned] == [(late, 2)]
    assert kept.tolist() == [[0, 1], [2, 3]]


def test_only_the_last_word_of_the_grammar_process_counts() -> None:
    guide = Guide(Silent(), {"id": 0, "tokens": []})
    masks = {"masks": [None], "forced": [5, 6, 7], "end": False}
    guide.take(masks)
    guide.advance([5])
    guide.foresee([6, 7])
    assert (guide.ready, guide.forced) == (False, [6, 7])
    guide.take(masks | {"forced": [6, 7]})
    assert not guide.ready  # the masks behind the draft are still to come
    guide.take({"masks": [None] * 3, "forced": [6, 7], "end": False})
    assert (guide.ready, len(guide.masks)) == (True, 3)
    guide.advance([9])
    assert guide.forced == []
