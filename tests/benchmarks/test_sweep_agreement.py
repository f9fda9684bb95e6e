"""When a recommendation agrees with another sweep: examples whose figures are arithmetic."""

from __future__ import annotations

from collections.abc import Sequence

from support.sweeps import record
from sweep_advice import LATENCY, MEMORY, THROUGHPUT
from sweep_agreement import CASES, agreement
from sweep_points import Load, Server
from sweep_records import Record

LOAD = Load(1, 10, 11)


def half(**token_s: Sequence[float]) -> list[Record]:
    """Return a sweep whose servers of s1, s2, ... shards have these times in its repeats."""
    return [record(Server(int(name[1:])), LOAD, times, first_s=0.0) for name, times in token_s.items()]


def test_the_same_best_agrees() -> None:
    first, second = half(s1=[0.2] * 3, s2=[0.1] * 3), half(s1=[0.3] * 3, s2=[0.2] * 3)
    assert agreement(first, second) == {LATENCY: (2, 2, True), THROUGHPUT: (2, 2, True), MEMORY: (2, 2, True)}


def test_a_best_within_the_noise_of_the_other_sweep_agrees() -> None:
    first = half(s1=[0.100] * 3, s2=[0.100] * 3)  # a tie: the fewer
    second = half(s1=[0.100, 0.104, 0.106], s2=[0.099, 0.1, 0.101])
    assert agreement(first, second)[LATENCY] == (1, 2, True)


def test_another_best_differs() -> None:
    first, second = half(s1=[0.1] * 3, s2=[0.2] * 3), half(s1=[0.2] * 3, s2=[0.1] * 3)
    assert agreement(first, second)[LATENCY] == (1, 2, False)
    assert agreement(first, second)[MEMORY] == (2, 2, True)


def test_what_the_other_sweep_could_not_measure_differs() -> None:
    first, second = half(s1=[0.2] * 3, s2=[0.1] * 3), half(s1=[0.2] * 3)
    assert agreement(first, second)[LATENCY] == (2, 1, False)
    assert agreement(first, half(s1=[])) == agreement(half(s1=[]), first) == {}


def test_there_are_ten_cases_of_which_half_have_links() -> None:
    assert len(set(CASES)) == 10
    assert sum(case.link is not None for case in CASES) == 5
