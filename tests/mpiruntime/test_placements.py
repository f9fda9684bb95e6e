"""Models on groups of ranks behind one engine: the same answers as alone, whatever shares ranks and comes and goes."""

from __future__ import annotations

import random
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from support.checkpoints import PROMPT, reference_hidden, write_checkpoint
from support.placements import GREEDY, alone, answers, ask, placement
from support.worlds import Recorder, embed, generate, named, place

from ollampi.mpiruntime import runner as runner_module
from ollampi.mpiruntime.cluster_settings import ClusterSettings
from ollampi.mpiruntime.inbox import Event


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: write_checkpoint(root / name, seed=seed) for seed, name in enumerate("abc")}


@pytest.mark.parametrize(
    ("size", "a", "b"),
    [
        (2, [[0]], [[1]]),
        (4, [[0, 1]], [[2, 3]]),
        (4, [[1]], [[2, 3]]),
        (3, [[0, 1]], [[1, 2]]),
        (4, [[0, 1], [2, 3]], [[1, 2], [0, 3], [3]]),
        (3, [[0, 1, 2]], [[2]]),
    ],
)
def test_models_on_any_groups_answer_as_alone(
    folders: dict[str, Path], size: int, a: list[list[int]], b: list[list[int]]
) -> None:
    messages = [place(100, "a", folders["a"], ranks=a), place(101, "b", folders["b"], ranks=b)]
    asked = [(i, "ab"[i % 2], (3, 5, 9)[i % 3]) for i in range(14)]
    messages += [ask(i, name, folders[name], length) for i, name, length in asked]
    recorder = answers(size, messages)
    assert [replica["ranks"] for replica in placement(recorder, 100)["replicas"]] == sorted(
        a, key=lambda ranks: 0 not in ranks
    )
    for i, name, length in asked:
        assert recorder.tokens(i) == alone(folders[name], length, 6)


def test_embeddings_come_from_a_group_without_rank_0(folders: dict[str, Path]) -> None:
    messages = [place(100, "test:latest", folders["a"], ranks=[[1, 2]]), embed(1, folders["a"], [PROMPT, PROMPT[:5]])]
    found = answers(3, messages).embeddings(1)
    for index, length in enumerate((17, 5)):
        assert (found[index] - reference_hidden(folders["a"], PROMPT[:length])[-1]).abs().max() <= 1e-4


def steps_by_model(monkeypatch: pytest.MonkeyPatch) -> dict[int, int]:
    counts: dict[int, int] = {}
    plain = runner_module.Runner.send

    def noting(self: Any, step: Any) -> None:
        counts[step.model] = counts.get(step.model, 0) + 1
        plain(self, step)

    monkeypatch.setattr(runner_module.Runner, "send", noting)
    return counts


@pytest.mark.parametrize("how", ["least_connections", "round_robin", "random", "prefix_aware"])
def test_requests_are_spread_over_the_replicas(
    folders: dict[str, Path], how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = steps_by_model(monkeypatch)
    messages = [place(100, "a", folders["a"], shards=1, replicas=3)]
    messages += [ask(i, "a", folders["a"], (3, 5, 9)[i % 3]) for i in range(24)]
    recorder = answers(3, messages, cluster=ClusterSettings(load_balancing=how))
    assert sorted(r["ranks"] for r in placement(recorder, 100)["replicas"]) == [[0], [1], [2]]
    assert len(counts) == 3
    for i in range(24):
        assert recorder.tokens(i) == alone(folders["a"], (3, 5, 9)[i % 3], 6)


def test_rank_0_may_be_the_coordinator_alone(folders: dict[str, Path]) -> None:
    messages = [
        ask(1, "a", folders["a"], 9),
        place(100, "b", folders["b"], shards=1),
        ask(2, "b", folders["b"], 9),
        place(101, "c", folders["c"], ranks=[[0]]),
    ]
    recorder = answers(3, messages, cluster=ClusterSettings(node_role="coordinator"))
    assert recorder.tokens(1) == alone(folders["a"], 9, 6)
    assert recorder.tokens(2) == alone(folders["b"], 9, 6)
    assert placement(recorder, 100)["replicas"][0]["ranks"] in ([1], [2])
    assert "rank 0 is the coordinator" in recorder.last(101)["message"]


def test_the_start_model_and_its_draft_may_lie_on_other_ranks(folders: dict[str, Path]) -> None:
    message = named("test:latest", generate(1, folders["a"], PROMPT, sampling=GREEDY, max_tokens=9))
    recorder = answers(
        3, [message], cluster=ClusterSettings(node_role="coordinator"), draft=(folders["a"], folders["b"])
    )
    assert recorder.tokens(1) == alone(folders["a"], len(PROMPT), 9)


@pytest.mark.parametrize(
    ("wish", "told"),
    [
        ({"strategy": "fast"}, "strategy=fast is unknown; use one of auto, memory-optimized"),
        ({"shards": 9}, "cannot cut 8 attention heads into 9 shards; use 1 to 3"),
        ({"shards": 0}, "into 0 shards"),
        ({"shards": 2, "replicas": 2}, "2 replicas of 2 shards want 4 ranks and 3 can hold weights"),
        ({"replicas": 0}, "replicas=0 are none"),
        ({"ranks": [[0, 3]]}, "there is no rank 3; ranks that can hold weights: 0, 1, 2"),
        ({"ranks": [[-1]]}, "there is no rank -1"),
        ({"ranks": [[1, 1]]}, "name one twice"),
        ({"ranks": [[0, 1]], "shards": 1}, "shards=1 and the 2 ranks [0, 1] differ"),
        ({"ranks": [[0, 1]], "replicas": 2}, "replicas=2 and 1 lists of ranks differ"),
        ({"ranks": []}, "0 lists of ranks"),
        ({"ranks": [[]]}, "into 0 shards"),
        ({"shards": 1, "context": 2**30}, None),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_changes(
    folders: dict[str, Path], wish: dict[str, Any], told: str | None
) -> None:
    messages = [
        place(100, "a", folders["a"], ranks=[[0, 2]]),
        place(101, "b", folders["b"], **wish),
        {"op": "loaded", "id": 102, "behind": [100, 101]},
        {**ask(1, "a", folders["a"], 5), "behind": [102]},
    ]
    recorder = answers(3, messages)
    if told is not None:
        assert (recorder.last(101)["code"], told in recorder.last(101)["message"]) == ("request", True), recorder.last(
            101
        )
        assert [m["name"] for m in recorder.last(102)["models"]] == ["a"]
    assert recorder.tokens(1) == alone(folders["a"], 5, 6)


@pytest.mark.parametrize("strategy", ["auto", "memory-optimized", "speed-optimized", "balanced"])
def test_each_strategy_says_what_it_chose_and_why(folders: dict[str, Path], strategy: str) -> None:
    recorder = answers(3, [place(100, "a", folders["a"], strategy=strategy), ask(1, "a", folders["a"], 5)])
    entry = placement(recorder, 100)
    assert entry["strategy"] == strategy
    assert entry["why"]
    assert entry["shards"] == len(entry["replicas"][0]["ranks"]) == (2 if strategy == "memory-optimized" else 1)
    assert recorder.last(1)["kind"] == "done"


class Waiting(Recorder):
    """Lets other ranks load when an answer, which runs meanwhile, has some more tokens."""

    def __init__(self, messages: list[dict[str, Any]], stream: int, enough: int) -> None:
        super().__init__(messages)
        self.stream, self.enough, self.far = stream, enough, threading.Event()
        self.loading = threading.Event()
        self.seen = 0

    def post(self, event: Event) -> None:
        super().post(event)
        if event["id"] == self.stream and self.loading.is_set():
            self.seen += len(event.get("tokens", []))
            if self.seen >= self.enough:
                self.far.set()


@pytest.mark.parametrize("a", [[[0]], [[0, 1]]])
def test_answers_go_on_while_other_ranks_load(
    folders: dict[str, Path], a: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The load ends only when the answer has 8 more tokens: it must not wait for it."""
    messages = [
        place(100, "a", folders["a"], ranks=a),
        ask(1, "a", folders["a"], 9, 30),
        place(101, "b", folders["b"], ranks=[[2]]),
        ask(2, "b", folders["b"], 9),
    ]
    client = Waiting(messages, 1, 8)
    plain = runner_module.Runner._load_slice

    def slow(self: Any, load: Any, *rest: Any) -> Any:
        if load.path == str(folders["b"]):
            client.loading.set()
            assert client.far.wait(60)
        return plain(self, load, *rest)

    monkeypatch.setattr(runner_module.Runner, "_load_slice", slow)
    answers(3, messages, client)
    assert client.tokens(1) == alone(folders["a"], 9, 30)
    assert client.tokens(2) == alone(folders["b"], 9, 6)


def test_a_load_that_fails_on_other_ranks_is_told_to_all_who_wait_for_it(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = runner_module.Runner._load_slice

    def broken(self: Any, load: Any, *rest: Any) -> Any:
        if load.path == str(folders["b"]) and self.comm.rank == 2:
            raise OSError(5, "Input/output error")
        return plain(self, load, *rest)

    monkeypatch.setattr(runner_module.Runner, "_load_slice", broken)
    messages = [
        place(100, "b", folders["b"], ranks=[[0], [1, 2]]),
        ask(1, "a", folders["a"], 9),
        {"op": "loaded", "id": 101},
    ]
    recorder = answers(3, messages)
    assert "Input/output error" in recorder.last(100)["message"]
    assert recorder.tokens(1) == alone(folders["a"], 9, 6)


class Cancelling(Recorder):
    """Cancels request 1 at its second token, when the next step is under way on other ranks."""

    def post(self, event: Event) -> None:
        super().post(event)
        if event["id"] == 1 and len(self.tokens(1)) == 2:
            self.messages.put({"op": "cancel", "id": 1})


def test_an_answer_may_be_cancelled_while_other_ranks_compute_it(folders: dict[str, Path]) -> None:
    messages = [place(100, "a", folders["a"], ranks=[[1, 2]])]
    messages += [ask(1, "a", folders["a"], 9, 30), ask(2, "a", folders["a"], 7, 9)]
    recorder = answers(3, messages, Cancelling(messages))
    assert recorder.last(1)["reason"] == "cancel"
    assert recorder.tokens(2) == alone(folders["a"], 7, 9)


@pytest.mark.parametrize("seed", range(2))
def test_overlapping_groups_with_loads_and_unloads_at_random_end_with_equal_answers(
    folders: dict[str, Path], seed: int
) -> None:
    draw = random.Random(seed)
    groups = [[[0, 1]], [[1, 2]], [[0, 2]], [[0, 1], [1, 2], [0, 2]], [[2]], [[0, 1, 2]]]
    messages: list[dict[str, Any]] = []
    asked = []
    for number in range(60):
        name = draw.choice("abc")
        if number % 6 == 0:
            messages.append(place(1000 + number, name, folders[name], ranks=draw.choice(groups)))
        elif number % 11 == 0:
            messages.append({"op": "unload", "id": 1000 + number, "model": {"name": name}})
        else:
            asked.append((number, name, draw.choice((3, 5, 9))))
            messages.append(ask(number, name, folders[name], asked[-1][2]))
    recorder = answers(3, messages)
    for number, name, length in asked:
        assert recorder.tokens(number) == alone(folders[name], length, 6), recorder.last(number)


def test_a_world_leaves_no_threads(folders: dict[str, Path]) -> None:
    before = threading.active_count()
    for _ in range(2):
        answers(3, [place(100, "a", folders["a"], ranks=[[1, 2]]), ask(1, "a", folders["a"], 9)])
    assert threading.active_count() <= before + 2
    assert torch.is_inference_mode_enabled() is False
