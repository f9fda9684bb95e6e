"""Models on groups of ranks of a real MPI job, through the links that a server chooses."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from support.checkpoints import PROMPT, reference_logits, write_checkpoint
from support.groups import Reading, load_on, read_together, unload

from ollampi.mpiruntime.communicator import Communicator
from ollampi.mpiruntime.errors import ModelError
from ollampi.mpiruntime.exchange import choose_exchange
from ollampi.mpiruntime.exchange_settings import ExchangeSettings
from ollampi.mpiruntime.group_maker import GroupMaker
from ollampi.mpiruntime.groups import Groups
from ollampi.mpiruntime.load_report import LoadReport
from ollampi.mpiruntime.runner import Runner
from ollampi.mpiruntime.slices import Slice
from ollampi.mpiruntime.step import Load, Stop
from ollampi.mpiruntime.world import survey

pytestmark = pytest.mark.mpi
LINKS = ["shared", "mpi", "compressed"]


@pytest.fixture(scope="session")
def folders(comm: Communicator, shared_folder: Path) -> list[Path]:
    paths = [shared_folder / f"group{seed}" for seed in range(2)]
    if comm.rank == 0:
        for seed, path in enumerate(paths):
            write_checkpoint(path, seed=seed)
    comm.collect(b"written")
    return paths


def lead(comm: Communicator, link: str, work: Callable[[Runner], None]) -> None:
    """Have rank 0 lead a world whose groups go through a kind of link; collective."""
    coded = {"communication_strategy": "compressed", "compression_level": 1} if link == "compressed" else {}
    settings = ExchangeSettings(**{"link": "auto" if coded else link, **coded})
    facts = survey(comm)
    exchange = choose_exchange(comm, facts, settings, True)
    runner = Runner(exchange.comm, facts, sums=exchange.sums)
    runner.groups = Groups(runner.groups.world, GroupMaker(comm, facts, settings, True, exchange, None))
    if comm.rank:
        runner.follow()
        return
    try:
        work(runner)
    finally:
        runner.lead(Stop())


def subsets(size: int) -> list[tuple[int, ...]]:
    """Return all groups of a world."""
    return [ranks for count in range(1, size + 1) for ranks in combinations(range(size), count)]


@pytest.mark.parametrize("link", LINKS)
def test_every_group_computes_what_the_reference_does(comm: Communicator, folders: list[Path], link: str) -> None:
    def work(runner: Runner) -> None:
        expected = reference_logits(folders[0], PROMPT)
        for number, ranks in enumerate(subsets(comm.size)):
            assert load_on(runner, number, folders[0], ranks) == list(ranks)
        readings = [Reading(number, PROMPT, []) for number in range(len(subsets(comm.size)))]
        read_together(runner, readings, 0)
        for reading in readings:
            assert (torch.cat(reading.rows) - expected).abs().max() <= (0.2 if link == "compressed" else 1e-4)
            unload(runner, reading.number)
        assert len(runner.groups) == 1

    lead(comm, link, work)


@pytest.mark.parametrize("link", LINKS)
def test_loads_and_unloads_leave_nothing_behind(comm: Communicator, folders: list[Path], link: str) -> None:
    """Communicators, threads, descriptors and segments, on every rank; MPI's own communicators are few."""
    held: list[tuple[int, int, int]] = []

    def work(runner: Runner) -> None:
        draw = random.Random(1)
        for turn in range(12):
            for number in range(2):
                load_on(runner, number, folders[number], draw.choice(subsets(comm.size)))
            read_together(runner, [Reading(number, PROMPT[:3], []) for number in range(2)], turn)
            for number in range(2):
                unload(runner, number)

    for _ in range(2):
        lead(comm, link, work)
        segments = Path("/proc/self/maps").read_text().count("/dev/shm/ollampi")
        held.append((len(os.listdir("/proc/self/fd")), threading.active_count(), segments))
    assert held[1][0] <= held[0][0] + 2 * comm.size  # what the world's own segment watches
    assert held[1][1] <= held[0][1] + 1
    assert held[1][2] <= held[0][2] + 1


def test_more_groups_than_mpi_has_contexts(comm: Communicator) -> None:
    """MPICH has 2,048 contexts of communicators, of which each group takes three."""
    draw = random.Random(2)
    for _ in range(700):
        ranks = draw.choice(subsets(comm.size))
        if comm.rank in ranks:
            part = comm.within(ranks)
            assert part.collect(str(comm.rank).encode()) == [str(rank).encode() for rank in ranks]
            part.leave()


@pytest.mark.parametrize("how", ["slices", "scatter"])
def test_loads_that_fail_leave_nothing_behind(comm: Communicator, folders: list[Path], how: str) -> None:
    """One rank finds its file gone; no rank keeps a model, group, descriptor or thread, and the next load works."""
    settings = ExchangeSettings()
    facts = survey(comm)
    exchange = choose_exchange(comm, facts, settings, True)
    runner = Runner(exchange.comm, facts, sums=exchange.sums)
    runner.groups = Groups(runner.groups.world, GroupMaker(comm, facts, settings, True, exchange, None))
    plain, held, unlucky = runner._load_slice, list[tuple[int, int]](), comm.size - 1

    def gone(load: Load, *rest: Any) -> tuple[Slice, LoadReport]:
        if comm.rank == unlucky and load.name == "m99":
            raise FileNotFoundError(2, "No such file or directory", load.path)
        return plain(load, *rest)

    runner._load_slice = gone  # type: ignore[method-assign, assignment]

    def work() -> None:
        for turn, ranks in enumerate(group for group in subsets(comm.size) * 2 if unlucky in group):
            with pytest.raises(ModelError, match="No such file"):
                load_on(runner, 99, folders[0], ranks, load=how)
            assert load_on(runner, turn, folders[0], ranks, load=how) == list(ranks)
            unload(runner, turn)

    for _ in range(2):
        if comm.rank:
            runner.follow()
        else:
            try:
                work()
            finally:
                runner.lead(Stop())  # the others must not wait for what has failed
        held.append((len(os.listdir("/proc/self/fd")), threading.active_count()))
    assert (len(runner.groups), runner._models) == (1, {})
    assert all(after <= before for before, after in zip(*held, strict=True)), held


def test_a_message_larger_than_what_mpi_buffers_holds_nobody_up(comm: Communicator, folders: list[Path]) -> None:
    """Rank 0 tells groups that overlap, without itself, more than their ranks can take before they have computed."""

    def work(runner: Runner) -> None:
        if comm.size < 3:
            return
        groups = [(1, 2), tuple(range(1, comm.size)), (0, 1)]
        for number, ranks in enumerate(groups):
            load_on(runner, number, folders[0], ranks)
        for _ in range(3):
            readings = [Reading(number, [7] * 3, []) for number in range(3)]
            steps = [reading.send(runner, padding=3000) for reading in readings]
            for reading, step in reversed(list(zip(readings, steps, strict=True))):
                reading.take(runner, step)
            assert all(torch.equal(r.rows[0].argmax(-1), readings[0].rows[0].argmax(-1)) for r in readings)
        for number in range(3):
            unload(runner, number)

    lead(comm, "shared", work)
