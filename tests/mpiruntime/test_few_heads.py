"""A model with fewer attention heads than the world has ranks is placed on as many as it has heads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.checkpoints import write_checkpoint
from support.placements import SETTINGS, alone, ask
from support.worlds import Recorder, lead, place, run_engine

from ollampi.mpiruntime.cluster_settings import ClusterSettings
from ollampi.mpiruntime.cluster_view import placement_of
from ollampi.mpiruntime.errors import WorldError
from ollampi.mpiruntime.hosted import Models
from ollampi.mpiruntime.request import ModelRef
from ollampi.mpiruntime.runner import Runner
from ollampi.mpiruntime.thread_world import run_threads

LESS = {1: {"num_attention_heads": 1, "num_key_value_heads": 1}, 2: {"num_attention_heads": 2}}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Return folders of models by their number of heads."""
    root = tmp_path_factory.mktemp("models")
    few = {heads: write_checkpoint(root / str(heads), **more) for heads, more in LESS.items()}
    return {**few, 8: write_checkpoint(root / "eight")}


def served(size: int, messages: list[dict[str, Any]], **how: Any) -> tuple[Recorder, dict[str, Any]]:
    """Return the events of a world, and where models lay last."""
    lay: dict[str, Any] = {}

    def look(runner: Runner, models: Models) -> None:
        lay.update({placed.ref.name: placement_of(placed) for placed in models.placed()})

    found = run_threads(size, lambda comm: run_engine(comm, messages, SETTINGS, supervise=look, **how))[0]
    assert found is not None
    return found, lay


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("heads", [1, 2])
def test_a_plain_request_lies_on_as_many_ranks_as_it_has_heads(folders: dict[int, Path], heads: int, size: int) -> None:
    messages = [ask(1, "few", folders[heads], 9), ask(2, "many", folders[8], 5), ask(3, "few", folders[heads], 3)]
    recorder, lay = served(size, messages)
    assert recorder.tokens(1) == alone(folders[heads], 9, 6)
    assert recorder.tokens(2) == alone(folders[8], 5, 6)
    assert recorder.tokens(3) == alone(folders[heads], 3, 6)
    assert len(lay["many"].replicas[0].ranks) == size
    assert len(lay["few"].replicas[0].ranks) == min(size, heads)
    assert ("no more attention heads" in lay["few"].why) == (size > heads)


def test_ranks_that_hold_no_weights_get_none(folders: dict[int, Path]) -> None:
    recorder, lay = served(4, [ask(1, "few", folders[2], 9)], cluster=ClusterSettings(node_role="coordinator"))
    assert recorder.tokens(1) == alone(folders[2], 9, 6)
    assert set(lay["few"].replicas[0].ranks) < {1, 2, 3}


def test_a_larger_context_leaves_it_where_it_is(folders: dict[int, Path]) -> None:
    more = ask(2, "few", folders[2], 9)
    more["request"]["context"] = 100
    recorder, lay = served(3, [ask(1, "few", folders[2], 5), more])
    assert recorder.tokens(2) == alone(folders[2], 9, 6)
    assert (len(lay["few"].replicas[0].ranks), lay["few"].context) == (2, 100)


def test_more_shards_than_heads_stay_refused(folders: dict[int, Path]) -> None:
    messages = [place(100, "few", folders[2], shards=3), ask(1, "few", folders[2], 9)]
    recorder, _ = served(3, messages)
    told = "cannot cut 2 attention heads into 3 shards; use 1 to 2"
    assert (recorder.last(100)["code"], told in recorder.last(100)["message"]) == ("request", True)
    assert recorder.tokens(1) == alone(folders[2], 9, 6)


def test_the_model_of_the_start_is_refused_on_more_ranks_than_heads(folders: dict[int, Path]) -> None:
    def work(runner: Runner) -> str:
        with pytest.raises(WorldError) as refused:
            Models(runner, SETTINGS).pin(ModelRef("few", str(folders[2])))
        return str(refused.value)

    told = run_threads(3, lambda comm: lead(comm, work))[0]
    assert told == "cannot cut 2 attention heads into 3 shards; use at most 2 ranks"
