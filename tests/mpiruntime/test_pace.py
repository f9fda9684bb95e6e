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


def test_prompts_get_the_room_that_the_stretch_leaves() -> None:
    pace = paced(1, 64, 512)
    for stretch in (1.5, 4.0, 20.0, 100.0):
        room = pace.prompt_room(1, stretch)
        assert room == 4 or line(1 + room) <= stretch * line(1) * 1.001
        assert line(1 + 2 * room) > stretch * line(1)


def test_a_draft_costs_its_share_of_a_step() -> None:
    pace = paced(1, 16)
    assert pace.price(1, 15) == pytest.approx(0.0005 / line(1))
    assert pace.price(8, 8) == pytest.approx(8 * 0.0005 / line(8))


def test_one_slow_step_says_little() -> None:
    pace = paced(4)
    pace.observe(4, 10.0)
    assert pace.seconds(4) == pytest.approx(1.2 * line(4))
