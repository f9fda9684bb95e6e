"""The grammar process opens grammars in an order in which nobody waits long for another."""

from __future__ import annotations

from typing import Any

from ollampi.mpiruntime.grammar_worker import next_of


def opening(number: int, size: int, since: float) -> dict[str, Any]:
    return {"id": number, "text": "x" * size, "since": since}


def order(queue: list[dict[str, Any]], now: float, seconds_each: float) -> list[int]:
    """Return in which order grammars are opened."""
    queue, opened = list(queue), []
    while queue:
        found = next_of(queue, now)
        queue.remove(found)
        opened.append(found["id"])
        now += seconds_each
    return opened


def test_a_small_one_goes_before_huge_ones_that_came_earlier() -> None:
    queue = [opening(number, 60_000, 0.0) for number in range(4)] + [opening(4, 20, 0.3)]
    assert order(queue, 0.3, 1.0) == [4, 0, 1, 2, 3]


def test_equal_ones_are_opened_as_they_came() -> None:
    assert order([opening(number, 50, 0.1 * number) for number in range(6)], 1.0, 0.01) == list(range(6))


def test_a_huge_one_is_not_put_off_for_ever() -> None:
    """Small ones come faster than they can be opened."""
    waiting, now, opened = [opening(0, 2000, 0.0)], 0.0, []
    for number in range(1, 400):
        waiting.append(opening(number, 100, now))
        found = next_of(waiting, now)
        waiting.remove(found)
        opened.append(found["id"])
        now += 0.2
    assert 0 in opened
