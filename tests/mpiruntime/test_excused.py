"""A rank of which nothing is asked, since others have work, is as ready as before."""

from __future__ import annotations

from typing import Any

import pytest

from ollampi.mpiruntime.health import Health

CHECK_S, TIMEOUT_S = 10.0, 15.0
BEAT: dict[str, Any] = {"step_age": None, "work_age": None, "doing": "", "turn": 0}


def reasons(monkeypatch: pytest.MonkeyPatch, at_work: set[int], doing: str) -> list[int]:
    """Return which of three ranks are named when some have had work for long, of which nothing came, and another did
    `doing` all the time."""
    now = [100.0]
    monkeypatch.setattr("ollampi.mpiruntime.health.time.monotonic", lambda: now[0])
    health = Health(3, 1.0, TIMEOUT_S, CHECK_S)
    health.turn()
    health.tested([[], [], []])
    for _ in range(60):
        now[0] += 1.0
        for rank in range(3):
            health.take(rank, {**BEAT, "doing": doing if rank == 1 else ""}, now[0])  # type: ignore[typeddict-item]
        health.excuse(at_work)
    return [rank for rank, _ in health.reasons(now[0])]


@pytest.mark.parametrize(
    ("at_work", "doing", "named"),
    [
        ({0}, "", [0]),  # the others wait for messages
        ({0}, "fetch", [0, 1]),  # and this one for its file system
        ({0}, "load", []),  # time in which any rank loads does not count
        ({1, 2}, "", [1, 2]),  # rank 0 only coordinates
        (set(), "", [0, 1, 2]),  # there should have been self-tests
    ],
)
def test_idle_ranks_are_ready_while_others_have_work(
    monkeypatch: pytest.MonkeyPatch, at_work: set[int], doing: str, named: list[int]
) -> None:
    assert reasons(monkeypatch, at_work, doing) == named
