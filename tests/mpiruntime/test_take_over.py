"""Ranks that leave, or compute wrong, hold nothing any more: others take over, and answers are as of a lone model."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints import write_checkpoint
from support.placements import Job, alone, ask
from support.worlds import InStages, come_back, leave, place

from ollampi.mpiruntime import hosted as hosted_module
from ollampi.mpiruntime import runner as runner_module
from ollampi.mpiruntime.cluster_settings import ClusterSettings
from ollampi.mpiruntime.errors import MemoryShortError
from ollampi.mpiruntime.hosted import Models
from ollampi.mpiruntime.spares import stand_ins
from ollampi.mpiruntime.world import RankFacts


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: write_checkpoint(root / name, seed=seed) for seed, name in enumerate("ab")}


HOSTS = ["a", "a", "b", "b", "a"]


@pytest.mark.parametrize(
    ("rank", "held", "taken", "expected"),
    [
        (0, {}, {0}, [1, 4, 2, 3]),  # its host first
        (3, {}, {3}, [2, 0, 1, 4]),
        (0, {1: 5, 4: 1, 3: 2}, {0}, [2, 4, 1, 3]),  # those that hold nothing first, on whatever host
        (0, {}, {0, 1, 2}, [4, 3]),
        (0, {}, {0, 1, 2, 3, 4}, []),
    ],
)
def test_those_that_hold_nothing_stand_in_first(
    rank: int, held: dict[int, int], taken: set[int], expected: list[int]
) -> None:
    facts = [RankFacts(r, host, 0, 1, [0], 1, 1, 1 << 30) for r, host in enumerate(HOSTS)]
    assert stand_ins(rank, facts, range(5), held, taken) == expected
    assert stand_ins(rank, facts, range(3), held, taken) == [r for r in expected if r < 3]


@pytest.mark.parametrize(
    ("size", "wish", "rank", "lies"),
    [
        (2, {"ranks": [[1]]}, 1, [[0]]),
        (3, {"ranks": [[1]]}, 1, [[0]]),  # rank 0 holds nothing either, and is the first
        (3, {"ranks": [[0, 1]]}, 1, [[0, 2]]),
        (4, {"ranks": [[1, 2]]}, 2, [[0, 1]]),
        (4, {"ranks": [[0, 1], [2]]}, 1, [[0, 3], [2]]),
        (4, {"ranks": [[0], [1], [2]]}, 2, [[0], [1], [3]]),
        (4, {"ranks": [[0, 1, 2]]}, 1, [[0, 2, 3]]),
        (2, {"ranks": [[0], [1]]}, 1, [[0]]),  # nobody else, but another replica
        (4, {"ranks": [[1, 2], [0, 1]]}, 1, [[0, 3]]),  # the second one finds nobody
        (3, {"ranks": [[0]]}, 2, [[0]]),  # it holds nothing
    ],
)
def test_a_rank_leaves_and_another_one_takes_over(
    folders: dict[str, Path], size: int, wish: dict[str, Any], rank: int, lies: list[list[int]]
) -> None:
    """Answers that run meanwhile and those that come later are right, and the rank holds nothing any more."""
    folder = folders["a"]
    job = Job(
        size,
        InStages(
            [place(100, "a", folder, **wish)],
            [ask(i, "a", folder, 5 + i, 40) for i in range(4)] + [leave(101, rank)],
            [ask(i, "a", folder, 5 + i) for i in range(4, 8)] + [place(102, "a", folder, ranks=lies), leave(103, rank)],
        ),
    )
    for i in range(8):
        assert job.client.tokens(i) == alone(folder, 5 + i, 40 if i < 4 else 6), job.client.last(i)
    assert job.client.last(101)["unfinished"] == 0
    assert sorted(job.lies["a"]) == sorted(lies)
    assert [r["ranks"] for r in job.client.last(102)["placement"]["replicas"]] == job.lies["a"]  # it is there already
    assert (job.client.last(103)["code"], "has left already" in job.client.last(103)["message"]) == ("conflict", True)
    assert rank not in job.held
    assert job.statuses == ["left" if r == rank else "online" for r in range(size)]
    assert job.health.reasons(0.0) == []


@pytest.mark.parametrize(
    ("size", "wish", "rank", "told"),
    [
        (1, {"ranks": [[0]]}, 0, "node-0 coordinates the job"),
        (2, {"ranks": [[0, 1]]}, 0, "node-0 coordinates the job"),
        (2, {"ranks": [[0, 1]]}, 1, "the replica of a on node-0, node-1 would stop, and no rank can take over: every"),
        (3, {"ranks": [[0, 1], [1, 2]]}, 1, "the replica of a on node-0, node-1 would stop"),
    ],
)
def test_where_nobody_can_take_over_nothing_changes(
    folders: dict[str, Path], size: int, wish: dict[str, Any], rank: int, told: str
) -> None:
    folder = folders["a"]
    job = Job(size, InStages([place(100, "a", folder, **wish)], [leave(101, rank)], [ask(1, "a", folder, 9)]))
    refused = job.client.last(101)
    assert (refused["code"], told in refused["message"]) == ("conflict", True), refused
    assert job.client.tokens(1) == alone(folder, 9, 6)
    assert sorted(job.lies["a"]) == wish["ranks"]
    assert (job.usable, job.statuses) == (tuple(range(size)), ["online"] * size)


def test_the_last_rank_beside_a_coordinator_stays(folders: dict[str, Path]) -> None:
    job = Job(2, InStages([leave(1, 1)]), cluster=ClusterSettings(node_role="coordinator"))
    assert "node-1 is the last rank that may hold weights" in job.client.last(1)["message"]


def test_a_rank_that_left_gets_nothing_until_it_comes_back(folders: dict[str, Path]) -> None:
    a, b = folders["a"], folders["b"]
    job = Job(
        3,
        InStages(
            [leave(100, 2)],
            [ask(1, "a", a, 9)],
            [place(101, "b", b, ranks=[[2]]), place(102, "b", b, shards=1, replicas=3), leave(103, 2)],
            [come_back(104, 2), come_back(105, 2), come_back(106, 1)],
            [place(107, "b", b, ranks=[[2]])],
            [ask(2, "b", b, 9)],
        ),
    )
    assert job.client.tokens(1) == alone(a, 9, 6)
    assert "rank 2 has left; ranks that can hold weights: 0, 1" in job.client.last(101)["message"]
    assert "3 replicas of 1 shards want 3 ranks and 2 can hold weights" in job.client.last(102)["message"]
    assert job.client.last(104)["kind"] == "back"
    assert [job.client.last(n)["code"] for n in (103, 105, 106)] == ["conflict"] * 3
    assert job.client.tokens(2) == alone(b, 9, 6)
    assert job.lies == {"a": [[0, 1]], "b": [[2]]}
    assert job.statuses == ["online"] * 3
    assert [line.partition(":")[0] for line in job.said] == ["rank 2 has left", "rank 2 is back"]


def test_what_runs_ends_when_its_time_is_over(folders: dict[str, Path]) -> None:
    folder = folders["a"]
    job = Job(
        3,
        InStages(
            [place(100, "a", folder, ranks=[[1]])],
            [ask(1, "a", folder, 9, 100_000), leave(101, 1, timeout_s=0.0), ask(2, "a", folder, 9)],
        ),
    )
    ended = job.client.last(1)
    assert (ended["code"], "rank 1 left before this answer was complete" in ended["message"]) == ("unavailable", True)
    assert job.client.last(101)["unfinished"] >= 1
    assert job.lies == {"a": [[0]]}
    assert job.client.last(2)["kind"] == "error" or job.client.tokens(2) == alone(folder, 9, 6)


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave no room for a replica beside the one that it replaces."""
    plain = hosted_module.Models.fits

    def fits(self: Models, move: Any, ranks: tuple[int, ...], first: bool) -> Any:
        if first:
            raise MemoryShortError("too little")
        return plain(self, move, ranks, first)

    monkeypatch.setattr(hosted_module.Models, "fits", fits)


@pytest.mark.parametrize("ranks", [[[0, 1]], [[1, 2]]])
def test_where_memory_is_short_the_old_one_goes_first(
    folders: dict[str, Path], ranks: list[list[int]], little_memory: None
) -> None:
    """Its requests finish; those that come meanwhile wait."""
    folder = folders["a"]
    job = Job(
        4,
        InStages(
            [place(100, "a", folder, ranks=ranks)],
            [ask(1, "a", folder, 9, 40), leave(101, 1), *[ask(i, "a", folder, 3 + i) for i in range(2, 6)]],
        ),
    )
    assert job.client.tokens(1) == alone(folder, 9, 40)
    for i in range(2, 6):
        assert job.client.tokens(i) == alone(folder, 3 + i, 6)
    assert job.client.last(101)["kind"] == "departed"
    assert 1 not in job.held
    assert len(job.lies["a"]) == 1


def broken_after(monkeypatch: pytest.MonkeyPatch, good: int) -> None:
    """Have all loads fail but the first ones, which take so many slices."""
    count, plain = itertools.count(), runner_module.Runner._load_slice

    def load(self: Any, message: Any, *rest: Any) -> Any:
        if next(count) >= good:
            raise OSError(5, "Input/output error")
        return plain(self, message, *rest)

    monkeypatch.setattr(runner_module.Runner, "_load_slice", load)


@pytest.mark.parametrize("ranks", [[[0, 1]], [[1, 2]]])
def test_a_load_that_fails_leaves_all_as_it_was(
    folders: dict[str, Path], ranks: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken_after(monkeypatch, 2)
    folder = folders["a"]
    job = Job(
        4,
        InStages(
            [place(100, "a", folder, ranks=ranks)],
            [ask(1, "a", folder, 9, 40), leave(101, 1)],
            [ask(2, "a", folder, 9)],
        ),
    )
    assert "Input/output error" in job.client.last(101)["message"]
    assert job.client.tokens(1) == alone(folder, 9, 40)
    assert job.client.tokens(2) == alone(folder, 9, 6)
    assert (job.lies, job.usable) == ({"a": ranks}, (0, 1, 2, 3))


def test_a_load_that_fails_when_the_old_one_is_gone_loses_it_alone(
    folders: dict[str, Path], little_memory: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken_after(monkeypatch, 2)
    folder = folders["a"]
    job = Job(3, InStages([place(100, "a", folder, ranks=[[0, 1]])], [leave(101, 1)], [ask(1, "a", folder, 9)]))
    assert "Input/output error" in job.client.last(101)["message"]
    assert "Input/output error" in job.client.last(1)["message"]  # it is loaded anew for that one, in vain
    assert (job.lies, job.usable) == ({}, (0, 1, 2))


def test_a_model_that_is_unloaded_meanwhile_does_not_come_back(folders: dict[str, Path]) -> None:
    folder = folders["a"]
    gone = {"op": "unload", "id": 102, "model": {"name": "a"}}
    job = Job(3, InStages([place(100, "a", folder, ranks=[[1]])], [leave(101, 1), gone]))
    assert job.client.last(101)["kind"] == "departed"
    assert job.lies == {}


@pytest.mark.parametrize("seed", range(2))
def test_ranks_that_leave_and_come_back_at_random_change_no_answer(folders: dict[str, Path], seed: int) -> None:
    draw, numbers = random.Random(seed), itertools.count(1)
    stages, asked = [], []
    for turn in range(10):
        stage = []
        if turn % 4 == 0:
            name = draw.choice("ab")
            groups = draw.choice([[[0, 1]], [[1, 2]], [[2], [3]], [[1], [2, 3]]])
            stage.append(place(next(numbers), name, folders[name], ranks=groups))
        for _ in range(3):
            number, name, length = next(numbers), draw.choice("ab"), draw.choice((3, 9))
            asked.append((number, name, length, draw.choice((4, 20))))
            stage.append(ask(number, name, folders[name], length, asked[-1][3]))
        rank = draw.randint(1, 3)
        stage.insert(draw.randint(0, len(stage)), leave(next(numbers), rank))
        stage.append(come_back(next(numbers), draw.randint(1, 3)))
        stages.append(stage)
    job = Job(4, InStages(*stages))
    for number, name, length, count in asked:
        assert job.client.tokens(number) == alone(folders[name], length, count), job.client.last(number)
    assert {event["code"] for event in job.client.log if event["kind"] == "error"} <= {"conflict", "request"}
