"""The watchdogs of some ranks with a clock that is turned by hand: who is named, by whom, and who is not."""

from __future__ import annotations

from collections import deque

import pytest
import torch
from support.posts import Box

from ollampi.mpiruntime.communicator import Single
from ollampi.mpiruntime.watchdog import Place, Watchdog
from ollampi.mpiruntime.watched import Watched

LIMIT_S = 30.0


class World:
    """Ranks with watchdogs; ranks in `stopped` do nothing at all."""

    def __init__(self, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("ollampi.mpiruntime.watchdog.time.monotonic", lambda: 0.0)
        self.now, self.stopped, self.cut = 0.0, set[int](), set[int]()
        boxes: list[deque[tuple[int, bytes]]] = [deque() for _ in range(size)]
        self.told: dict[int, list[str]] = {rank: [] for rank in range(size)}
        hosts = [f"h{rank}" for rank in range(size)]
        self.dogs = [Watchdog(Box(r, boxes, self.cut), hosts, LIMIT_S, self.told[r].append) for r in range(size)]

    def wait(self, seconds: float, all_stand_still: bool = False) -> None:
        """Let time pass, with looks in between unless nobody runs."""
        end = self.now + seconds
        self.now = end if all_stand_still else self.now
        while True:
            for rank, dog in enumerate(self.dogs):
                if rank not in self.stopped:
                    dog.look(self.now)
            if self.now >= end:
                return
            self.now = min(end, self.now + 0.25)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(4, monkeypatch)


@pytest.mark.parametrize("stopped", [{0}, {1}, {3}, {0, 2}, {1, 2, 3}])
def test_all_others_name_the_ranks_that_are_stopped(world: World, stopped: set[int]) -> None:
    world.stopped = stopped
    for rank in set(range(4)) - stopped:
        world.dogs[rank].place.come("all_reduce", True)
    world.wait(LIMIT_S - 1)
    assert not any(world.told.values())
    world.wait(2)
    names = ", ".join(f"rank {rank} (host h{rank})" for rank in sorted(stopped))
    for rank in range(4):
        assert len(world.told[rank]) == (rank not in stopped)
        for text in world.told[rank]:
            assert text.startswith(
                f"{names} {'has' if len(stopped) == 1 else 'have'} not come to all_reduce for 30 s: "
            )
            assert "stopped" in text


def test_a_rank_that_is_cut_off_is_named_by_the_others_and_names_them(world: World) -> None:
    world.cut.add(2)
    for dog in world.dogs:
        dog.place.come("gather", True)
    world.wait(LIMIT_S + 1)
    assert {world.told[r][0].split(" has ")[0] for r in (0, 1, 3)} == {"rank 2 (host h2)"}
    assert world.told[2][0].startswith("rank 0 (host h0), rank 1 (host h1), rank 3 (host h3) have not come to gather")


def test_ranks_that_have_nothing_to_do_are_told_too(world: World) -> None:
    world.stopped = {3}
    world.dogs[0].place.come("broadcast", False)
    for rank in (1, 2):
        world.dogs[rank].place.come("", False)
    world.wait(LIMIT_S + 1)
    assert [len(world.told[rank]) for rank in range(4)] == [1, 1, 1, 0]


def test_a_rank_that_answers_but_does_not_come_to_a_step_is_named(world: World) -> None:
    for rank in (0, 1, 3):
        world.dogs[rank].place.come("all_reduce", True)
    world.wait(LIMIT_S + 1)
    for rank in range(4):
        (text,) = world.told[rank]
        assert text.startswith("rank 2 (host h2) has not come to all_reduce for 30 s: its process answers")


def test_a_rank_that_is_busy_with_a_load_is_waited_for(world: World) -> None:
    for rank in (0, 1, 3):
        world.dogs[rank].place.come("collect", False)
    world.wait(20 * LIMIT_S)
    assert not any(world.told.values())
    world.stopped = {2}
    world.wait(2 * LIMIT_S)
    assert all(world.told[rank][0].startswith("rank 2 (host h2) has not come to collect") for rank in (0, 1, 3))


def test_only_the_ranks_of_a_group_can_be_missing_in_it(world: World) -> None:
    """Rank 2 waits for rank 1 in their group; rank 0 has nothing to do, and rank 3 computes elsewhere for long."""
    world.dogs[2].at((1, 2)).come("all_reduce", True)
    world.dogs[0].idle.come("messages", False)
    world.wait(LIMIT_S + 1)
    for rank in range(4):
        (text,) = world.told[rank]
        assert text.startswith("rank 1 (host h1) has not come to all_reduce for 30 s: its process answers")


def test_a_rank_that_waits_in_a_step_of_another_group_is_not_the_one_that_is_missing(world: World) -> None:
    """Rank 0 waits for rank 1, which waits for rank 2 in another group, for less long; rank 2 computes."""
    world.dogs[0].at((0, 1)).come("all_reduce", True)
    world.wait(0.3 * LIMIT_S)
    world.dogs[1].at((1, 2)).come("gather", True)
    world.wait(LIMIT_S + 1)
    for rank in range(4):
        (text,) = world.told[rank]
        assert text.startswith("rank 2 (host h2) has not come to gather for 30 s")


def test_a_rank_that_loads_is_waited_for_by_those_who_wait_for_its_answer(world: World) -> None:
    world.dogs[0].idle.come("answers", False)
    world.wait(20 * LIMIT_S)
    assert not any(world.told.values())
    world.stopped = {2}
    world.wait(2 * LIMIT_S)
    assert all(world.told[rank][0].startswith("rank 2 (host h2) has not come to answers") for rank in (0, 1, 3))


def test_ranks_that_wait_for_work_may_do_so_for_ever(world: World) -> None:
    for rank in (1, 2, 3):
        world.dogs[rank].place.come("", False)
    world.stopped = {2}
    world.wait(10 * LIMIT_S)
    assert not any(world.told.values())


def test_slow_ranks_that_come_in_time_are_not_called_missing(world: World) -> None:
    for _ in range(3):
        for rank in (0, 1, 3):
            world.dogs[rank].place.come("all_reduce", True)
        world.wait(0.9 * LIMIT_S)
        world.dogs[2].place.come("all_reduce", True)
        for dog in world.dogs:
            dog.place.go()
        world.wait(5)
    assert not any(world.told.values())


def test_time_in_which_all_stood_still_does_not_count(world: World) -> None:
    for dog in world.dogs:
        dog.place.come("all_reduce", True)
    world.wait(0.9 * LIMIT_S)
    world.wait(100 * LIMIT_S, all_stand_still=True)
    for dog in world.dogs:
        dog.place.go()
    world.wait(LIMIT_S)
    assert not any(world.told.values())


def test_a_collective_counts_and_is_left_again() -> None:
    place = Place()
    comm = Watched(Single(), place)
    comm.all_reduce(torch.ones(1))
    assert comm.all_reduce_later(torch.ones(1))().tolist() == [1]
    comm.gather(torch.ones(1, 1))
    comm.share_rows(torch.ones(1, 1), torch.zeros(1, dtype=torch.int64))
    comm.broadcast(b"x")
    comm.collect(b"x")
    comm.share(torch.ones(1))
    assert (place.turn, place.what) == (8, "")


@pytest.mark.parametrize(
    ("name", "arguments", "what", "prompt"),
    [
        ("all_reduce", 1, "all_reduce", True),
        ("all_reduce_later", 1, "all_reduce", True),
        ("share_rows", 2, "share_rows", True),
        ("gather", 1, "gather", True),
        ("broadcast", 1, "broadcast", False),
        ("collect", 1, "collect", False),
        ("share", 1, "share", False),
    ],
)
def test_a_rank_that_waits_says_where(name: str, arguments: int, what: str, prompt: bool) -> None:
    seen = []

    class Looking(Single):
        def __getattribute__(self, wanted: str) -> object:
            if wanted == name:
                return lambda *given: seen.append((place.what, place.prompt))
            return super().__getattribute__(wanted)

    place = Place()
    getattr(Watched(Looking(), place), name)(*[b""] * arguments)
    assert seen == [(what, prompt)]
    assert place.what == ""
