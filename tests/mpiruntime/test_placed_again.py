"""A model that is placed again lies as it is wished for last, and moves only where it must."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.checkpoints import write_checkpoint
from support.placements import alone, answers, ask, placement
from support.worlds import place


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: write_checkpoint(root / name, seed=seed) for seed, name in enumerate("ab")}


def test_a_placement_that_is_there_is_told_again_and_another_one_replaces_it(folders: dict[str, Path]) -> None:
    messages = [
        place(100, "a", folders["a"], ranks=[[1, 2]]),
        place(101, "a", folders["a"], ranks=[[1, 2]]),
        ask(1, "a", folders["a"], 5),
        place(102, "a", folders["a"], ranks=[[0]]),
        ask(2, "a", folders["a"], 5),
        {**ask(3, "a", folders["a"], 5), "id": 3},
    ]
    messages[5]["request"]["context"] = 100  # more than it has: loaded anew, where it was
    recorder = answers(3, [*messages, place(103, "a", folders["a"], ranks=[[0]])])
    assert [placement(recorder, n)["replicas"][0]["ranks"] for n in (100, 101, 102)] == [[1, 2], [1, 2], [0]]
    for i in (1, 2, 3):
        assert recorder.tokens(i) == alone(folders["a"], 5, 6)


def test_a_model_that_is_placed_again_stays_where_it_is(folders: dict[str, Path]) -> None:
    """What it holds itself does not count: it goes first."""
    messages = [
        place(100, "a", folders["a"], ranks=[[1, 2]]),
        place(101, "a", folders["a"], shards=2),
        place(102, "a", folders["a"], shards=2, context=40),
        place(103, "b", folders["b"], shards=1),
        place(104, "a", folders["a"], shards=3),
        place(105, "a", folders["a"], shards=2, context=41),
    ]
    recorder = answers(3, messages)
    found = [placement(recorder, n)["replicas"][0]["ranks"] for n in (100, 101, 102, 103, 104, 105)]
    assert found == [[1, 2], [1, 2], [1, 2], [0], [0, 1, 2], [1, 2]]
