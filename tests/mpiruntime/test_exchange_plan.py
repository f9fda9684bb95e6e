"""How the way of a sum follows from what was measured."""

from __future__ import annotations

import math

import pytest
import torch

from ollampi.kernels.codecs import codec_of
from ollampi.kernels.groups import GROUP
from ollampi.mpiruntime.algorithms import ALGORITHMS, Room
from ollampi.mpiruntime.exchange_plan import (
    BENEATH,
    LARGE,
    SIZES,
    Choice,
    Plan,
    best,
    exact_plan,
    hopeless,
    make_plan,
    seconds_of,
    sent_bytes,
)
from ollampi.mpiruntime.link import Parcel
from ollampi.mpiruntime.thread_world import ThreadCommunicator, run_threads

KIB = 1 << 10
WORLDS = (2, 3, 4, 5, 8)
LARGE_SIZES = [size for size in SIZES if size >= LARGE]


def line(latency_us: float, us_per_kib: float) -> dict[int, float]:
    """Return the seconds of SIZES of a way that has a latency and a rate."""
    return {size: (latency_us + us_per_kib * size / KIB) * 1e-6 for size in SIZES}


def network(latency_us: float, us_per_kib: float, ranks: int, level: int = 0) -> dict[Choice, dict[int, float]]:
    """Return what the algorithms take over a network: trips, and the bytes that a rank sends."""
    trips = {"one_step": 1, "doubling": (ranks - 1).bit_length(), "scattered": 2}
    return {
        Choice(name, level): line(trips[name] * latency_us, us_per_kib * sent_bytes(name, KIB, ranks) / KIB)
        for name in ALGORITHMS
    }


class Counting:
    """A link that counts what this rank sends."""

    def __init__(self, comm: ThreadCommunicator) -> None:
        link = comm.link(range(comm.size))
        assert link is not None
        self.rank, self.size, self.sent = link.rank, link.size, 0
        self._link = link

    def swap(self, sends: list[Parcel], receives: list[Parcel], what: str) -> None:
        self.sent += sum(len(part) for _, part in sends)
        self._link.swap(sends, receives, what)


@pytest.mark.parametrize("ranks", WORLDS)
@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_bytes_of_an_algorithm_are_those_that_its_busiest_rank_sends(ranks: int, name: str) -> None:
    count = 64 * GROUP * ranks

    def work(comm: ThreadCommunicator) -> int:
        link = Counting(comm)
        ALGORITHMS[name](link, codec_of(0, torch.device("cpu")), torch.ones(count), Room())
        return link.sent

    assert max(run_threads(ranks, work)) == sent_bytes(name, 4 * count, ranks)
    assert sent_bytes(BENEATH, 4 * count, ranks) == math.inf


@pytest.mark.parametrize("ranks", WORLDS)
@pytest.mark.parametrize("latency_us", [5.0, 100.0])
def test_small_sums_go_the_fastest_way_and_large_ones_that_of_the_fewest_bytes(ranks: int, latency_us: float) -> None:
    figures = network(latency_us, 8.0, ranks) | {Choice(BENEATH, 0): line(latency_us, 40.0)}
    plan = exact_plan(figures, ranks)
    for size in (*SIZES, LARGE, 512 * KIB, 16 << 20):
        found = plan.of(size)
        times = {choice: seconds_of(figures, choice, min(size, SIZES[-1])) or math.inf for choice in figures}
        if size < LARGE:
            assert times[found] == min(times.values())
        else:
            least = min(sent_bytes(choice.algorithm, size, ranks) for choice in figures)
            assert sent_bytes(found.algorithm, size, ranks) == least == 2 * size - 2 * (size // ranks)


@pytest.mark.parametrize("ranks", WORLDS[1:])
@pytest.mark.parametrize("other", [Choice(BENEATH, 0), Choice("one_step", 0)])
def test_another_way_takes_large_sums_only_where_it_is_twice_as_fast_around_their_size(
    ranks: int, other: Choice
) -> None:
    scattered = Choice("scattered", 0)
    for factor, wanted in ((0.45, other), (0.55, scattered)):
        figures = {scattered: line(200.0, 10.0), other: {n: factor * s for n, s in line(200.0, 10.0).items()}}
        assert [best(figures, size, 0, ranks) for size in LARGE_SIZES] == [wanted] * len(LARGE_SIZES)
    for noisy in LARGE_SIZES:  # one time that is out of line is noise
        figures = {scattered: line(200.0, 10.0), other: line(200.0, 9.0)}
        figures[scattered][noisy] *= 5
        assert [best(figures, size, 0, ranks) for size in LARGE_SIZES] == [scattered] * len(LARGE_SIZES)


def test_between_the_sizes_measured_times_lie_on_a_line() -> None:
    way = Choice("one_step", 0)
    figures = {way: line(50.0, 3.0)}
    for size in (4 * KIB, 24 * KIB, 128 * KIB, 512 * KIB, 2 << 20):
        assert seconds_of(figures, way, size) == pytest.approx((50 + 3 * size / KIB) * 1e-6)
    assert [seconds_of(figures, way, size) for size in (SIZES[0] - 1, SIZES[-1] + 1)] == [None, None]
    del figures[way][SIZES[-1]]
    assert seconds_of(figures, way, 2 << 20) is None


def test_a_size_has_the_choice_of_the_nearest_power_of_two() -> None:
    """Trips are dear, so that one_step is best up to the size where scattered's bytes pay for its second."""
    figures = network(100.0, 8.0, 4)  # 100 + 24 KiB against 200 + 12 KiB microseconds: alike at 8.3 KiB
    plan = exact_plan(figures, 4)
    assert [plan.of(size).algorithm for size in (KIB, 8 * KIB, 11 * KIB)] == ["one_step"] * 3
    assert [plan.of(size).algorithm for size in (12 * KIB, 16 * KIB, 1 << 30)] == ["scattered"] * 3
    assert len(plan.choices) == len(plan.bounds) + 1 == (SIZES[-1] // SIZES[0]).bit_length()


@pytest.mark.parametrize("ranks", WORLDS)
def test_codes_are_chosen_by_auto_where_their_way_is_a_tenth_faster(ranks: int) -> None:
    for factor, wanted in ((0.95, 0), (0.85, 2)):
        figures = network(100.0, 8.0, ranks) | network(factor * 100.0, factor * 8.0, ranks, level=2)
        assert {choice.level for choice in make_plan(figures, "auto", 2, ranks).choices} == {wanted}
        assert {choice.level for choice in make_plan(figures, "compressed", 2, ranks).choices} == {2}
        assert {choice.level for choice in make_plan(figures, "none", 2, ranks).choices} == {0}


@pytest.mark.parametrize("ranks", WORLDS)
def test_no_way_is_given_up_that_sends_less_than_those_that_are_faster(ranks: int) -> None:
    slow = {Choice("one_step", 0): 1.0, Choice("doubling", 0): 1.0, Choice("scattered", 0): 9.0}
    assert Choice("scattered", 0) not in hopeless(ranks, LARGE, slow) or ranks == 2
    fast = {Choice("one_step", 0): 9.0, Choice("doubling", 0): 1.9, Choice("scattered", 0): 1.0}
    assert hopeless(ranks, LARGE, fast) == {Choice("one_step", 0)}
    assert hopeless(ranks, LARGE, fast | {Choice(BENEATH, 0): 2.1}) == {Choice("one_step", 0), Choice(BENEATH, 0)}
    assert hopeless(ranks, LARGE, {**fast, Choice("scattered", 0): math.inf, Choice("scattered", 2): 1e-6}) <= set(fast)
    assert hopeless(ranks, SIZES[0], slow) == hopeless(ranks, SIZES[1], fast) == set()


def test_a_plan_of_one_choice_serves_every_size() -> None:
    plan = Plan((), (Choice("one_step", 1),))
    assert {plan.of(size) for size in (0, 1, 1 << 40)} == {Choice("one_step", 1)}
