"""Ranks test themselves while there is nothing else to do, and now and then where there is always work."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.checkpoints import PROMPT, reference_greedy, write_checkpoint
from support.checkups import CHECK_S, GREEDY, SETTINGS, World, follow, on_rank_0
from support.spoiling import decoder_of, flip, raw_bytes
from support.worlds import Recorder, Scraper, generate, place

from ollampi.mpiruntime import checkup, weight_check
from ollampi.mpiruntime.cache_check import FAULT
from ollampi.mpiruntime.communicator import Communicator
from ollampi.mpiruntime.health import Health
from ollampi.mpiruntime.runner import Runner
from ollampi.mpiruntime.step import Examine
from ollampi.mpiruntime.thread_world import run_threads


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("models") / "good")


@pytest.mark.parametrize("size", [1, 3])
def test_answers_are_the_same_and_no_test_comes_between_their_steps(
    folder: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkup, "BUSY", 1e9)
    messages = [generate(i, folder, PROMPT[: 9 + i], sampling=GREEDY, max_tokens=20) for i in range(3)]

    def work(comm: Communicator) -> World:
        world = World(comm, Recorder(messages), tick_s=CHECK_S)  # always due
        world.run(lambda: world.tests >= 5)
        return world

    world = on_rank_0(size, work)
    for i in range(3):
        assert world.client.tokens(i) == reference_greedy(folder, PROMPT[: 9 + i], 20)
    assert world.busy == 0
    assert world.health.tests == {"passed": world.tests, "failed": 0}
    assert world.health.nodes()[size - 1].faults == []


@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_server_that_always_has_work_is_tested_between_its_steps(folder: Path, size: int) -> None:
    """Answers that share beginnings go on until there were some tests; the blocks that they share are looked at too."""
    lengths = (9, 13, 17)
    messages = [generate(i, folder, PROMPT[: lengths[i]], sampling=GREEDY, max_tokens=10**6) for i in range(3)]

    def work(comm: Communicator) -> World:
        world = World(comm, Recorder(messages), tick_s=CHECK_S)
        said: list[int] = []

        def stop() -> None:
            if world.busy >= 4 and not said:
                said.append(1)
                for i in range(3):
                    world.client.messages.put({"op": "cancel", "id": i})

        world.on_look = stop
        world.run(lambda: True)
        return world

    world = on_rank_0(size, work)
    assert world.busy >= 4
    assert world.health.tests == {"passed": world.tests, "failed": 0}
    for i in range(3):
        found = world.client.tokens(i)[:20]
        assert found == reference_greedy(folder, PROMPT[: lengths[i]], 20)[: len(found)]


def test_a_test_under_work_may_be_late_and_the_job_stays_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits for the step that is under way: a rank that nothing else asks of must stay ready for so long."""
    now = 100.0
    monkeypatch.setattr("ollampi.mpiruntime.health.time.monotonic", lambda: now)
    health = Health(1, CHECK_S, CHECK_S, CHECK_S)
    health.turn()
    health.tested([[]])
    now += (checkup.BUSY + 0.9) * CHECK_S
    health.take(0, {"step_age": None, "work_age": None, "doing": "", "turn": 0}, now)
    assert health.reasons(now) == []


def test_under_work_tests_come_every_few_intervals(folder: Path) -> None:
    def work(comm: Communicator) -> list[int]:
        world = World(
            comm, Recorder([generate(1, folder, PROMPT, sampling=GREEDY, max_tokens=10**6)]), tick_s=CHECK_S / 5
        )
        at: list[int] = []

        def look() -> None:
            at.append(world.busy)
            if len(at) == 60:
                world.client.messages.put({"op": "cancel", "id": 1})

        world.on_look = look
        world.run(lambda: True)
        return at

    at = on_rank_0(2, work)
    tests = [look for look in range(1, 60) if at[look] > at[look - 1]]
    gaps = [later - sooner for sooner, later in itertools.pairwise(tests)]
    assert len(gaps) >= 2
    assert all(5 * checkup.BUSY - 2 <= gap <= 5 * checkup.BUSY for gap in gaps)  # a test looks at the clock again


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("cache_dtype", ["auto", "int8"])
def test_bits_that_flip_in_the_cache_are_told(folder: Path, size: int, cache_dtype: str) -> None:
    """A block that an answer filled is spoilt on the last rank once it was looked at."""
    runners: list[Runner] = []

    def work(comm: Communicator) -> World | None:
        if comm.rank:
            follow(comm, runners)
            return None
        world = World(
            comm,
            Recorder([generate(1, folder, PROMPT, sampling=GREEDY, max_tokens=2)]),
            tick_s=CHECK_S,
            settings=replace(SETTINGS, cache_dtype=cache_dtype),
        )
        if size == 1:
            runners.append(world.runner)

        def spoil() -> None:
            if world.tests == 4 and world.health.tests["failed"] == 0:
                (held,) = runners[0]._models.values()
                next(iter(held.cache.in_block(1))).view(torch.uint8)[1, 2, 0, 3] ^= 4

        world.on_look = spoil
        world.run(lambda: world.tests >= 8)
        return world

    world = run_threads(size, work)[0]
    assert world is not None
    assert world.health.tests == {"passed": 4, "failed": world.tests - 4}
    assert [node.faults for node in world.health.nodes()] == [[]] * (size - 1) + [[FAULT]]


def test_the_sums_of_all_groups_are_tested_in_turn(folder: Path) -> None:
    groups = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    messages = [
        place(number, f"m{number}", folder, ranks=[list(ranks)]) for number, ranks in enumerate([*groups, (2,)])
    ]
    asked: list[list[list[int]]] = []

    def work(comm: Communicator) -> World:
        settings = replace(SETTINGS, max_loaded_models=9)
        world = World(comm, Recorder(messages), tick_s=CHECK_S, settings=settings)
        lead = world.lead

        def note(message: Examine) -> Any:
            asked.append(message.groups)
            return lead(message)

        world.lead = note
        world.run(lambda: world.tests >= 12)
        return world

    world = on_rank_0(4, work)
    assert world.health.tests["failed"] == 0
    assert all(len(each) <= 4 and each == sorted(each) for each in asked)
    assert {tuple(ranks) for each in asked[-3:] for ranks in each} == set(groups)


def test_tests_come_at_their_interval_once_all_weights_are_known(folder: Path) -> None:
    def work(comm: Communicator) -> list[int]:
        world = World(comm, Recorder([generate(1, folder, PROMPT, sampling=GREEDY, max_tokens=2)]), tick_s=1.0)
        at: list[int] = []
        world.on_look = lambda: at.append(world.tests)
        world.run(lambda: len(at) >= 60)
        return at

    at = on_rank_0(2, work)
    tests = [look for look in range(1, len(at)) if at[look] > at[look - 1]]
    gaps = [later - sooner for sooner, later in itertools.pairwise(tests)][2:]
    assert len(gaps) >= 3
    assert all(CHECK_S - 2 <= gap <= CHECK_S for gap in gaps)  # two looks at the clock where a test is made


def test_a_model_is_learned_soon_after_its_load(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_check, "PIECE_BYTES", 4096)
    monkeypatch.setattr("ollampi.mpiruntime.checkup.BUDGET_S", 0.0)  # a piece in each test

    def work(comm: Communicator) -> int:
        world = World(
            comm, Recorder([generate(1, folder, PROMPT, sampling=GREEDY, max_tokens=2)]), tick_s=0.1, check_s=1e6
        )
        world.runner.lead_examine = world.lead  # type: ignore[method-assign]
        world.run(lambda: bool(world.runner._models) and not world.runner._self_test.weights.is_learning)
        return world.health.tests["passed"]

    assert on_rank_0(1, work) > 20


@pytest.mark.parametrize("what", ["off", "suspect"])
def test_no_test_where_it_is_off_or_a_rank_is_silent(folder: Path, what: str) -> None:
    messages = [generate(1, folder, PROMPT, sampling=GREEDY, max_tokens=4)]

    def work(comm: Communicator) -> World:
        world = World(comm, Recorder(messages), tick_s=1.0, check_s=0.0 if what == "off" else CHECK_S)
        if what == "suspect":
            world.health._nodes[1].status = "suspect"
        world.run(lambda: world.looks > 30)
        return world

    world = on_rank_0(2, work)
    assert world.client.tokens(1) == reference_greedy(folder, PROMPT, 4)
    assert world.tests == 0


@pytest.mark.parametrize("size", [1, 3])
def test_bits_that_flip_in_a_server_are_told(folder: Path, size: int) -> None:
    """The last rank's weights are spoilt once they are known: faults, readiness and a line say so, as does a scrape."""
    runners: list[Runner] = []
    messages = [generate(1, folder, PROMPT, sampling=GREEDY, max_tokens=2)]

    def work(comm: Communicator) -> World | None:
        if comm.rank:
            follow(comm, runners)
            return None
        world = World(comm, Scraper(messages), tick_s=CHECK_S)
        said: list[str] = []
        world.health.announce = said.append
        if size == 1:
            runners.append(world.runner)

        def spoil() -> None:
            if world.tests == 3 and world.health.tests["failed"] == 0:
                flip(next(raw_bytes(decoder_of(runners[0]).head.tensors()[0])), 9)

        world.on_look = spoil
        world.run(lambda: world.health.tests["failed"] >= 2)
        world.said = said  # type: ignore[attr-defined]
        return world

    world = run_threads(size, work)[0]
    assert world is not None
    fault = "the weights of the output head are not what was loaded: bad memory?"
    assert [node.faults for node in world.health.nodes()] == [[]] * (size - 1) + [[fault]]
    found, (rank, stuck) = world.health.reasons(0.0)[-2:]
    assert (found, rank) == ((size - 1, fault), size - 1)
    assert stuck.startswith(f"node-{size - 1} is the last rank" if size == 1 else f"node-{size - 1} cannot leave alone")
    said = [f"rank {size - 1}: {fault}", f"rank {size - 1} computes on: {stuck}"]
    assert world.said == said  # type: ignore[attr-defined]
    assert isinstance(world.client, Scraper)
    assert world.client.sample("ollampi_node_status", rank=str(size - 1), status="online") == 1
    faults = {labels["rank"]: n for name, labels, n in world.health.samples() if name == "ollampi_node_faults"}
    assert faults == {str(rank): int(rank == size - 1) for rank in range(size)}


@pytest.mark.parametrize("silent", [False, True])
def test_a_scrape_does_not_wait_for_a_rank_that_is_silent(folder: Path, silent: bool) -> None:
    messages = [generate(1, folder, PROMPT, sampling=GREEDY, max_tokens=4)]

    def work(comm: Communicator) -> tuple[Recorder, int]:
        world, asked = World(comm, Scraper(messages), tick_s=1.0), []
        report = world.runner.lead_report
        world.runner.lead_report = lambda: asked.append(1) or report()  # type: ignore[func-returns-value]
        world.health._nodes[1].status = "suspect" if silent else "online"
        world.run(lambda: True)
        return world.client, len(asked)

    client, asked = on_rank_0(2, work)
    assert isinstance(client, Scraper)
    assert asked == (not silent)
    assert client.sample("ollampi_node_status", rank="1", status="suspect") == silent
