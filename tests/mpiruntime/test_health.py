"""The hearts of some ranks with a clock that is turned by hand: who is online, suspect, offline, and since when."""

from __future__ import annotations

import itertools
from collections import deque
from typing import Any

import pytest
from support.posts import Box

from ollampi.mpiruntime.health import HANGING_S, HISTORY, Health
from ollampi.mpiruntime.heartbeat import Heart
from ollampi.mpiruntime.watchdog import Watchdog

INTERVAL_S, TIMEOUT_S, CHECK_S = 1.0, 15.0, 10.0
BEAT = {"cpu_percent": 7.5, "memory_total": 100, "memory_available": 40, "process_bytes": 9, "gpus": [], "step_ms": 2.0}


class World:
    """Ranks with watchdogs and hearts; ranks in `stopped` do nothing at all, those in `cut` are not heard."""

    def __init__(self, size: int, monkeypatch: pytest.MonkeyPatch, check_s: float = CHECK_S) -> None:
        self.now = 100.0
        monkeypatch.setattr("ollampi.mpiruntime.health.time.monotonic", lambda: self.now)
        self.stopped, self.cut = set[int](), set[int]()
        self.beats: list[dict[str, Any]] = [
            {**BEAT, "step_age": None, "work_age": 0.0, "doing": "", "turn": 0} for _ in range(size)
        ]
        self.health = Health(size, INTERVAL_S, TIMEOUT_S, check_s)
        self.said: list[str] = []
        self.health.announce = self.said.append
        boxes: list[deque[tuple[int, bytes]]] = [deque() for _ in range(size)]
        self.dogs = [self.dog(rank, boxes) for rank in range(size)]
        self.health.turn()

    def dog(self, rank: int, boxes: list[deque[tuple[int, bytes]]]) -> Watchdog:
        dog = Watchdog(Box(rank, boxes, self.cut), ["h"] * len(boxes), 1e9, self.said.append)
        dog.beside = Heart(
            INTERVAL_S, lambda now: self.beats[rank], lambda beat: dog.tell(0, beat), None if rank else self.health
        ).look
        if rank == 0:
            dog.heard = lambda other, beat: self.health.take(other, beat, self.now)
        return dog

    def wait(self, seconds: float, step_s: float = 0.25) -> None:
        end = self.now + seconds
        while self.now < end:
            self.now = min(end, self.now + step_s)
            for rank, dog in enumerate(self.dogs):
                if rank not in self.stopped:
                    dog.look(self.now)

    @property
    def statuses(self) -> list[str]:
        return [node.status for node in self.health.nodes()]

    @property
    def reasons(self) -> list[tuple[int, str]]:
        return self.health.reasons(self.now)


@pytest.fixture(params=[1, 2, 4, 9])
def world(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(request.param, monkeypatch)


def test_ranks_that_beat_are_online_and_what_they_say_is_kept(world: World) -> None:
    world.wait(60)
    nodes = world.health.nodes()
    assert [node.rank for node in nodes] == list(range(len(world.dogs)))
    for node in nodes:
        assert (node.status, node.faults, node.last_token_s) == ("online", [], None)
        assert {name: getattr(node, name) for name in BEAT} == BEAT
        assert node.seen_s is not None
        assert node.seen_s <= INTERVAL_S + 0.5
    assert world.reasons == []
    assert (world.health.history(), world.said) == ([], [])


def test_a_silent_rank_is_suspect_then_offline_and_online_when_it_goes_on(world: World) -> None:
    world.wait(5)
    last = len(world.dogs) - 1
    if last == 0:
        return  # rank 0 tells of itself
    world.stopped = {last}
    world.wait(2 * INTERVAL_S - 0.5)
    assert world.statuses[last] == "online"
    world.wait(1.5)
    assert world.statuses == ["online"] * last + ["suspect"]
    assert not world.health.all_online
    (reason,) = world.reasons
    assert reason[0] == last
    assert reason[1].startswith("suspect: no heartbeat for ")
    world.wait(TIMEOUT_S)
    assert world.statuses == ["online"] * last + ["offline"]
    world.stopped = set()
    world.wait(2 * INTERVAL_S)
    assert world.statuses == ["online"] * (last + 1)
    assert world.reasons == []
    assert [(change.rank, change.status) for change in world.health.history()] == [
        (last, "suspect"),
        (last, "offline"),
        (last, "online"),
    ]
    assert [line.split(":")[0] for line in world.said] == [
        f"rank {last} is suspect",
        f"rank {last} is offline",
        f"rank {last} is online",
    ]
    assert world.health.nodes()[last].since >= world.health.history()[0].at


def test_readiness_is_off_within_five_seconds_of_a_stop_at_any_time(monkeypatch: pytest.MonkeyPatch) -> None:
    for begun in (5.0, 5.25, 5.5, 5.75, 6.1):
        world = World(3, monkeypatch)
        world.wait(begun)
        world.stopped = {1}
        world.wait(4)
        assert [rank for rank, _ in world.reasons] == [1]


def test_a_pause_of_rank_0_or_of_all_ranks_blames_nobody(world: World) -> None:
    world.wait(5)
    world.wait(500, step_s=500)
    assert set(world.statuses) == {"online"}
    world.wait(3)
    assert set(world.statuses) == {"online"}
    assert world.health.history() == []


def test_the_history_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(2, monkeypatch)
    for _ in range(HISTORY):
        world.cut = {1}
        for dog in world.dogs:
            dog._post._cut = world.cut  # type: ignore[attr-defined]
        world.wait(4)
        world.cut = set()
        for dog in world.dogs:
            dog._post._cut = world.cut  # type: ignore[attr-defined]
        world.wait(2)
    assert len(world.health.history()) == HISTORY
    changes = {labels["rank"]: n for name, labels, n in world.health.samples() if name == "ollampi_node_changes_total"}
    assert changes == {"0": 0, "1": 2 * HISTORY}


def test_every_rank_must_have_worked_lately(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(3, monkeypatch)
    world.wait(2)
    assert world.reasons == []
    world.beats[2] = {**world.beats[2], "work_age": 3 * CHECK_S + 1}
    world.wait(2)
    ((rank, reason),) = world.reasons
    assert (rank, reason.startswith("has made no step and no self-test for 3")) == (2, True)
    world.health.tested([[], [], []])
    assert world.reasons == []


def test_a_rank_that_has_never_worked_is_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(2, monkeypatch)
    for rank in (0, 1):
        world.beats[rank] = {**world.beats[rank], "work_age": None}
    world.wait(2)
    assert world.reasons == [(0, "has made no step and no self-test yet"), (1, "has made no step and no self-test yet")]


def test_a_load_that_takes_long_keeps_the_job_ready(world: World) -> None:
    """No rank works while one loads, nor can; when the load is over, all must work within the time as before."""
    window = 3 * CHECK_S
    for beat in world.beats:
        beat["work_age"] = 5.0
    world.wait(2)
    for beat in world.beats:
        beat["work_age"] = 1e6
    world.beats[-1]["doing"] = "load"
    world.wait(20 * window)
    assert world.reasons == []
    world.beats[-1]["doing"] = ""
    world.wait(window - 2)
    assert world.reasons == []
    world.wait(4)
    assert [rank for rank, _ in world.reasons] == list(range(len(world.dogs)))
    assert "has made no step and no self-test for 3" in world.reasons[0][1]


def test_a_rank_that_was_taken_out_keeps_the_job_from_nothing(world: World) -> None:
    last = len(world.dogs) - 1
    world.wait(1)
    world.health.tested([[]] * last + [["layer 0 is bad"]])
    assert world.health.faulty() == {last: "layer 0 is bad"}
    world.health.stays(last, "nobody takes over")
    world.health.stays(last, "nobody takes over")
    assert world.reasons == [(last, "layer 0 is bad"), (last, "nobody takes over")]
    world.health.leave(last, "it was taken out: layer 0 is bad")
    assert (world.statuses[last], world.reasons, world.health.faulty()) == ("left", [], {})
    assert world.health.nodes()[last].faults == ["layer 0 is bad"]
    if last:
        world.stopped = {last}
        world.wait(5)
        assert (world.statuses[last], world.reasons) == ("suspect", [])
        world.stopped = set()
        world.wait(5)
        assert world.statuses[last] == "left"
    world.health.come_back(last)
    assert (world.statuses[last], world.reasons) == ("online", [(last, "layer 0 is bad")])
    world.health.tested([[]] * (last + 1))
    assert world.reasons == []
    assert [line for line in world.said if "takes over" in line] == [f"rank {last} computes on: nobody takes over"]
    samples = {labels["status"] for name, labels, _ in world.health.samples() if name == "ollampi_node_status"}
    assert samples == {"online", "suspect", "offline", "left"}


def test_without_self_tests_heartbeats_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(2, monkeypatch, check_s=0)
    for rank in (0, 1):
        world.beats[rank] = {**world.beats[rank], "work_age": None}
    world.wait(100)
    assert world.reasons == []


def test_a_long_step_that_moves_on_counts_as_work(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(2, monkeypatch)
    turns = itertools.count()
    for _ in range(100):
        for rank in (0, 1):
            world.beats[rank] = {**world.beats[rank], "work_age": 1000.0, "doing": "step", "turn": next(turns)}
        world.wait(1)
    assert world.reasons == []
    world.wait(3 * CHECK_S + 3)
    assert [rank for rank, _ in world.reasons] == [0, 1]


def test_faults_make_the_job_unready_until_they_are_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(3, monkeypatch)
    world.wait(2)
    world.health.tested([[], ["layer 1 is bad"], []])
    world.health.tested([[], ["layer 1 is bad"], []])
    assert world.reasons == [(1, "layer 1 is bad")]
    assert [node.faults for node in world.health.nodes()] == [[], ["layer 1 is bad"], []]
    assert world.said == ["rank 1: layer 1 is bad"]
    world.health.tested([[], [], []])
    assert world.reasons == []
    assert [change.why for change in world.health.history()] == [
        "layer 1 is bad",
        "the self-test finds nothing wrong any more",
    ]
    assert world.health.tests == {"passed": 1, "failed": 2}


def test_a_start_and_an_end_are_no_time_to_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    health = Health(2, INTERVAL_S, TIMEOUT_S, 0)
    assert health.reasons(0.0)[0] == (0, "starting")
    health.turn()
    assert health.answer({"op": "readiness", "id": 3})["reasons"] == []
    health.end()
    health.turn()
    assert health.answer({"op": "readiness", "id": 3}) == {
        "id": 3,
        "kind": "readiness",
        "live": True,
        "reasons": [(0, "shutting down")],
    }


def test_a_loop_that_neither_turns_nor_waits_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("ollampi.mpiruntime.health.time.monotonic", lambda: now)
    health = Health(1, INTERVAL_S, TIMEOUT_S, 0)
    assert not health.hangs(1000.0)  # it has not begun
    health.turn()
    assert not health.hangs(2000.0)
    assert not health.hangs(2000.0 + HANGING_S - 1)
    assert health.hangs(2000.0 + HANGING_S)
    assert health.reasons(2000.0 + HANGING_S)[0] == (0, "the main loop hangs")
    health.turn()
    assert not health.hangs(2000.0 + HANGING_S)
    health.waits = lambda: (True, 0)  # for others, or for a load
    assert not health.hangs(9000.0)
    moved = itertools.count(1)
    health.waits = lambda: (False, next(moved))  # a long step
    assert not any(health.hangs(10_000.0 + HANGING_S * turn) for turn in range(5))


def test_other_ranks_that_cannot_beat_count_as_online(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("ollampi.mpiruntime.health.time.monotonic", lambda: clock[0])
    health = Health(3, INTERVAL_S, TIMEOUT_S, CHECK_S, beats=False)
    beat: Any = {**BEAT, "step_age": 1.0, "work_age": 2.0, "doing": "", "turn": 0}
    health.refresh = Heart(INTERVAL_S, lambda at: beat, lambda beat: None, health).look
    for clock[0] in (100.0, 5000.0):
        health.turn()
        nodes = health.nodes()
        assert [node.status for node in nodes] == ["online"] * 3
        assert [node.last_token_s for node in nodes] == [1.0, None, None]
        assert [node.seen_s for node in nodes] == [0.0, None, None]
        assert health.answer({"op": "readiness"})["reasons"] == []
    assert health.history() == []
