"""What a rank tells of itself with each beat."""

from __future__ import annotations

from typing import Any

import pytest

from ollampi.mpiruntime.communicator import Single
from ollampi.mpiruntime.groups import plain_groups
from ollampi.mpiruntime.heartbeat import Heart
from ollampi.mpiruntime.meters import Meters
from ollampi.mpiruntime.vitals import Activity, Vitals
from ollampi.mpiruntime.watchdog import Place
from ollampi.mpiruntime.world import survey


def test_a_beat_tells_how_this_process_is() -> None:
    meters, activity, place = Meters(Single(), [], None), Activity(), Place()
    vitals = Vitals(meters, activity, place)
    first = vitals(1e6)
    assert (first["step_ms"], first["step_age"], first["work_age"], first["doing"]) == (None, None, None, "")
    assert 0 < first["process_bytes"] < first["memory_total"]
    assert 0 < first["memory_available"] <= first["memory_total"]
    assert first["cpu_percent"] >= 0
    meter = meters.of("m", plain_groups(Single(), Single(), survey(Single())).world)
    for seconds in (0.010, 0.030):
        meter.counts.add(1, seconds)
    meter.counts.ended = 1e6 + 5
    activity.worked_at, place.turn = 1e6 + 6, 17
    with activity.of("step"):
        second = vitals(1e6 + 7)
    assert second["step_ms"] == pytest.approx(20.0)
    assert (second["step_age"], second["work_age"], second["doing"], second["turn"]) == (2.0, 1.0, "step", 17)
    assert vitals(1e6 + 8)["step_ms"] == pytest.approx(20.0)  # no step since: the last mean stands


def test_what_a_rank_does_is_noted_with_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    activity = Activity()
    with activity.of("load"), activity.of("step"):
        assert activity.doing == "step"
    assert (activity.doing, activity.worked_at is not None) == ("", True)
    loading = Activity()
    with loading.of("load"):
        assert loading.doing == "load"
    assert (loading.doing, loading.worked_at) == ("", None)  # a load proves nothing


def test_a_beat_that_cannot_be_made_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(now: float) -> dict[str, Any]:
        raise OSError(24, "Too many open files")

    sent: list[dict[str, Any]] = []
    beat = {"cpu_percent": 7.5, "gpus": []}
    heart = Heart(1.0, broken, sent.append)
    heart.look(5.0)
    heart._read = lambda now: dict(beat)
    heart.look(5.5)
    assert sent == []
    heart.look(6.0)
    assert sent == [beat]
