"""Requests are counted by replica, wherever these lie and however often they come and go."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints import PROMPT, write_checkpoint
from support.worlds import Recorder, Scraper, generate, named, place, run_engine

from ollampi.mpiruntime.cluster_settings import ClusterSettings
from ollampi.mpiruntime.engine_settings import EngineSettings
from ollampi.mpiruntime.inbox import Event
from ollampi.mpiruntime.metrics import ModelCounts, RequestMeter
from ollampi.mpiruntime.request import Sampling
from ollampi.mpiruntime.thread_world import run_threads

SETTINGS = EngineSettings(context_length=64, cache_tokens=256, block_size=4, max_step_tokens=7, max_loaded_models=9)
IN_TURN = ClusterSettings(load_balancing="round_robin")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("models") / "a")


class InOrder(Scraper):
    """Says one thing after the answers to all before it, and cancels the answers of `left` at their second token."""

    def __init__(self, messages: list[dict[str, Any]], left: set[int]) -> None:
        super().__init__([])
        self.open |= {message["id"] for message in messages}
        self.rest, self.left = messages, left
        self.messages.put(self.rest.pop(0))

    def post(self, event: Event) -> None:
        super().post(event)
        number = event["id"]
        if number in self.left and event["kind"] == "tokens" and len(self.tokens(number)) >= 2:
            self.left.discard(number)
            self.messages.put({"op": "cancel", "id": number})
        if event["kind"] in ("done", "error", "placed") and self.rest:
            self.messages.put(self.rest.pop(0))

    def by_ranks(self) -> Counter[tuple[str, str]]:
        """Return how many requests of the model ended how, by the ranks of the replica."""
        samples = [s for s in self.last(-1)["samples"] if s[0] == "ollampi_replica_requests_total"]
        found = {(labels["ranks"], labels["outcome"]): value for _, labels, value in samples}
        assert len(found) == len(samples)
        return Counter({key: value for key, value in found.items() if value})


def told(recorder: Recorder, number: int) -> list[tuple[list[int], int, int]]:
    """Return the ranks, requests and errors of each replica, as a placement was answered."""
    return [(r["ranks"], r["requests"], r["errors"]) for r in recorder.last(number)["placement"]["replicas"]]


def asked(numbers: range, folder: Path) -> list[dict[str, Any]]:
    sampling = Sampling(temperature=0.0)
    return [named("a", generate(n, folder, PROMPT[:5], sampling=sampling, max_tokens=4)) for n in numbers]


def test_counts_go_on_when_a_replica_comes_again(folder: Path) -> None:
    """Four requests to each of two replicas, one of them cancelled; two to each when they are back, three elsewhere."""
    on_two: dict[str, Any] = {"ranks": [[0], [1, 2]]}
    messages = [
        place(100, "a", folder, **on_two),
        *asked(range(1, 9), folder),
        {"op": "unload", "id": 101, "model": {"name": "a"}},
        place(102, "a", folder, **on_two),
        *asked(range(11, 15), folder),
        place(103, "a", folder, **on_two),
        place(104, "a", folder, ranks=[[2]]),
        *asked(range(21, 24), folder),
        place(105, "a", folder, ranks=[[2]]),
        place(106, "a", folder, **on_two),
    ]
    client = InOrder(messages, left={2})
    run_threads(3, lambda comm: run_engine(comm, [], SETTINGS, client, cluster=IN_TURN))
    assert [e for e in client.log if e["kind"] == "error"] == []
    assert told(client, 100) == [([0], 0, 0), ([1, 2], 0, 0)]
    assert told(client, 102) == [([0], 4, 0), ([1, 2], 4, 0)]
    assert told(client, 103) == told(client, 106) == [([0], 6, 0), ([1, 2], 6, 0)]
    assert (told(client, 104), told(client, 105)) == ([([2], 0, 0)], [([2], 3, 0)])
    by_ranks = client.by_ranks()
    assert by_ranks == {("0", "length"): 6, ("1,2", "length"): 5, ("1,2", "cancel"): 1, ("2", "length"): 3}
    for outcome in ("stop", "length", "cancel", "error"):
        total = sum(count for (_, ended), count in by_ranks.items() if ended == outcome)
        assert client.sample("ollampi_requests_total", model="a", outcome=outcome) == total


def test_replicas_on_the_same_ranks_are_counted_apart(folder: Path) -> None:
    messages = [
        place(100, "a", folder, ranks=[[0, 1], [0, 1]]),
        *asked(range(1, 4), folder),
        place(101, "a", folder, ranks=[[0, 1], [0, 1]]),
    ]
    client = InOrder(messages, left=set())
    run_threads(2, lambda comm: run_engine(comm, [], SETTINGS, client, cluster=IN_TURN))
    assert told(client, 101) == [([0, 1], 2, 0), ([0, 1], 1, 0)]
    assert client.by_ranks() == {("0,1", "length"): 2, ("0,1 (2)", "length"): 1}


def test_a_refused_request_is_none_of_a_replica() -> None:
    counts = ModelCounts()
    replica = counts.of_replica((0, 3))
    for outcome in ("error", None, "stop", "error"):
        RequestMeter(counts, 1, 0.0, replica).end(outcome)
    assert replica == counts.outcomes == {"stop": 1, "length": 0, "cancel": 0, "error": 2}
    assert counts.of_replica((0, 3)) is replica
