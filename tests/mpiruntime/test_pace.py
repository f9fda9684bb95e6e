"""Pace tells how long steps take from those that were made."""

from __future__ import annotations

import pytest

from ollampi.mpiruntime.pace import Pace


def line(tokens: int) -> float:
    return 0.002 + 0.0005 * tokens


def paced(*sizes: int) -> Pace:
    pace = Pace()
    for size in sizes * 50:
        pace.observe(size, line(size))
    return pace


def test_nothing_is_claimed_before_the_first_step() -> None:
    pace = Pace()
    assert pace.seconds(1) is None
    assert pace.price(1, 4) is None
    assert pace.prompt_room(1, 2.0) == 4


@pytest.mark.parametrize("tokens", [1, 3, 12, 100, 300, 512])
def test_steps_of_known_kinds_are_told(tokens: int) -> None:
    assert paced(1, 8, 64, 512).seconds(tokens) == pytest.approx(line(tokens))


def test_beyond_the_known_it_is_no_optimist() -> None:
    pace = paced(8, 64)
    assert pace.seconds(1) == pytest.approx(line(8))
    assert pace.seconds(128) == pytest.approx(2 * line(64))


@pytest.mark.parametrize("stretch", [1.2, 1.8, 4.0])
@pytest.mark.parametrize("each", [0.0005, 0.01])  # seconds of a token: with the larger, four stretch a step too far
def test_a_long_prompt_stretches_steps_by_as_much_as_it_may_on_the_average(stretch: float, each: float) -> None:
    pace = Pace()
    for size in (1, 4, 16, 64, 512) * 50:
        pace.observe(size, 0.002 + each * size)
    rooms = []
    for _ in range(2000):
        rooms.append(pace.prompt_room(1, stretch))
        pace.observe(1 + rooms[-1], 0.002 + each * (1 + rooms[-1]))
    late = rooms[500:]
    mean = sum(0.002 + each * (1 + room) for room in late) / len(late)
    assert mean <= 1.02 * stretch * (0.002 + each)
    assert mean > 0.9 * stretch * (0.002 + each)


def test_a_short_prompt_comes_in_at_once_and_credit_is_saved_up_again() -> None:
    pace = paced(1, 64, 512)
    first = pace.prompt_room(1, 1.8)
    assert first >= 64
    pace.observe(1 + first, line(1 + first))
    assert pace.prompt_room(1, 1.8) < first
    for _ in range(200):
        pace.observe(1, line(1))
        pace.prompt_room(1, 1.8)
    assert pace.prompt_room(1, 1.8) == first


def test_a_draft_costs_its_share_of_a_step() -> None:
    pace = paced(1, 8, 16)
    assert pace.price(1, 15) == pytest.approx(0.0005 / line(1))
    assert pace.price(8, 8) == pytest.approx(1.5 * 8 * 0.0005 / line(8))


def test_what_drafts_cost_is_seen_where_they_are_made() -> None:
    pace = paced(1, 16, 256)
    assert pace.price(4, 12) is None  # never seen without drafts
    before = pace.price(16, 240)
    for _ in range(50):
        pace.observe(16, line(16))
        pace.observe(16 + 40, line(16) + 40 * 0.003, 16, 40)
        assert pace.price(16, 240) is not None
    assert pace.price(16, 240) == pytest.approx(1.5 * 0.003 * 16 / line(16), rel=0.03)
    assert pace.price(16, 240) > 5 * before
    assert pace.price(1, 15) == pytest.approx(0.0005 / line(1))  # one answer is another matter
    assert pace.seconds(56) == pytest.approx(line(56))  # and so are prompts
    pace.observe(16, line(16))
    for _ in range(64):
        assert pace.price(16, 240) is not None
        pace.observe(16 + 40, line(16) + 40 * 0.003, 16, 40)
    assert pace.price(16, 240) is None  # a step without drafts is due
    pace.observe(16, line(16))
    pace.observe(100, 9.0, 16, 40)  # prompts and drafts in one step tell nothing of either
    assert pace.seconds(100) == pytest.approx(line(100))
    before = pace.price(16, 240)
    for _ in range(300):
        pace.decline(16)
    assert pace.price(16, 240) < 0.1 * before  # tried again after a while


def test_one_slow_step_says_little() -> None:
    pace = paced(4)
    pace.observe(4, 10.0)
    assert pace.seconds(4) == pytest.approx(1.2 * line(4))
