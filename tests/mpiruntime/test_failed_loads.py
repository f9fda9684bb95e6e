"""A load that failed on other ranks harms neither the next one nor what runs meanwhile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.checkpoints import write_checkpoint
from support.worlds import Recorder, place, run_engine

from ollampi.mpiruntime import runner as runner_module
from ollampi.mpiruntime.engine_settings import EngineSettings
from ollampi.mpiruntime.inbox import Event
from ollampi.mpiruntime.thread_world import run_threads

SETTINGS = EngineSettings(context_length=64, cache_tokens=256, block_size=4, max_step_tokens=7)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("models") / "b")


class AskingAgain(Recorder):
    """Asks for a model again when its first load has failed."""

    def __init__(self, first: dict[str, Any], again: dict[str, Any]) -> None:
        super().__init__([first])
        self.first, self.again = first["id"], again
        self.open.add(again["id"])

    def post(self, event: Event) -> None:
        super().post(event)
        if event["id"] == self.first and event["kind"] == "error":
            self.messages.put(self.again)


def test_a_load_that_failed_on_other_ranks_is_tried_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, faults = runner_module.Runner._load_slice, [OSError(5, "Input/output error")]

    def broken_once(self: Any, load: Any, reading: Any) -> Any:
        if self.comm.rank == 2 and faults:
            raise faults.pop()
        return plain(self, load, reading)

    monkeypatch.setattr(runner_module.Runner, "_load_slice", broken_once)
    first, again = (place(number, "b", folder, ranks=[[1, 2]]) for number in (100, 101))
    recorder = AskingAgain(first, again)
    run_threads(3, lambda comm: run_engine(comm, [], SETTINGS, recorder))
    assert recorder.last(100)["message"] == "model b: rank 2: [Errno 5] Input/output error"
    assert recorder.last(101)["kind"] == "placed", recorder.last(101)
