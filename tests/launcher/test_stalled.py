"""A load that brings nothing ends the job; one that goes on, however slowly, does not."""

from __future__ import annotations

import os
import threading
from contextlib import nullcontext
from pathlib import Path

import pytest
from support.servers import DEMO
from support.worlds import loaded

from ollampi.launcher import assemble
from ollampi.launcher.config import compose_config
from ollampi.launcher.stalled import LoadWatch
from ollampi.mpiruntime.communicator import Single
from ollampi.mpiruntime.engine_settings import EngineSettings
from ollampi.mpiruntime.errors import ModelError
from ollampi.mpiruntime.hosted import Models
from ollampi.mpiruntime.request import ModelRef
from ollampi.mpiruntime.runner import Runner
from ollampi.mpiruntime.world import survey


class Lost:
    """What a watch says of a load that brings nothing."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.said = threading.Event()

    def note(self, text: str) -> None:
        self.told.append(text)
        self.said.set()


def test_a_load_that_brings_nothing_is_named() -> None:
    lost = Lost()
    watch = LoadWatch(0.05, lost.note)
    with watch.watching():
        watch.tick("demo:latest", 1, 10)
        assert lost.said.wait(60)
    (text,) = lost.told
    assert text.startswith("the load of demo:latest has brought nothing for 0.05 s: look whether the file system")
    assert "engine.load_timeout_s" in text


def test_a_load_of_which_nothing_came_is_not_taken_for_the_one_before() -> None:
    lost = Lost()
    watch = LoadWatch(0.05, lost.note)
    watch.tick("demo:latest", 10, 10)
    with watch.watching():
        assert lost.said.wait(60)
    assert lost.told[0].startswith("the load of a model has brought nothing for 0.05 s")


def test_a_load_that_goes_on_or_is_over_is_left_alone() -> None:
    told: list[str] = []
    watch = LoadWatch(30, told.append)
    with watch.watching():
        watch.tick("demo:latest", 1, 10)
    with watch.watching():
        pass
    assert told == []
    assert not [thread for thread in threading.enumerate() if thread.name == "load-watch"]


def test_a_file_that_does_not_answer_is_seen_by_the_rank_that_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    lost = Lost()

    def hangs(*_: object) -> int:
        assert lost.said.wait(60)
        raise OSError(110, "Connection timed out")

    comm = Single()
    runner, watch = Runner(comm, survey(comm)), LoadWatch(0.1, lost.note)
    runner.while_reading, runner.progress = watch.watching, watch.tick
    monkeypatch.setattr(os, "preadv", hangs)
    with pytest.raises(ModelError, match="Connection timed out"):
        loaded(Models(runner, EngineSettings(cache_tokens=64)), ModelRef("demo", str(DEMO)))
    assert len(lost.told) == 1


@pytest.mark.parametrize(("value", "watches"), [("null", False), ("1m", True)])
def test_the_setting_has_every_rank_watch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str, watches: bool
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    config = compose_config([f"engine.load_timeout_s={value}", "device=cpu"], {})
    runner, _ = assemble.runner(Single(), config)
    assert (runner.while_reading is not nullcontext) == watches
