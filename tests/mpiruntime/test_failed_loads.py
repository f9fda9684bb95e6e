"""A load that failed on other ranks harms neither the next one nor what runs meanwhile."""

from __future__ import annotations

import threading
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

    def broken_once(self: Any, load: Any, *rest: Any) -> Any:
        if self.comm.rank == 2 and faults:
            raise faults.pop()
        return plain(self, load, *rest)

    monkeypatch.setattr(runner_module.Runner, "_load_slice", broken_once)
    first, again = (place(number, "b", folder, ranks=[[1, 2]]) for number in (100, 101))
    recorder = AskingAgain(first, again)
    run_threads(3, lambda comm: run_engine(comm, [], SETTINGS, recorder))
    assert recorder.last(100)["message"] == "model b: rank 2: [Errno 5] Input/output error"
    assert recorder.last(101)["kind"] == "placed", recorder.last(101)


def test_a_model_of_the_same_name_at_another_path_has_not_failed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, plain = write_checkpoint(tmp_path / "bad"), runner_module.Runner._load_slice

    def broken(self: Any, load: Any, *rest: Any) -> Any:
        if load.path == str(bad):
            raise OSError(5, "Input/output error")
        return plain(self, load, *rest)

    monkeypatch.setattr(runner_module.Runner, "_load_slice", broken)
    recorder = Recorder([place(100, "b", bad, ranks=[[1]]), place(101, "b", folder, ranks=[[1]])])
    run_threads(2, lambda comm: run_engine(comm, [], SETTINGS, recorder))
    assert recorder.last(100)["message"] == "model b: rank 1: [Errno 5] Input/output error"
    assert recorder.last(101)["kind"] == "placed", recorder.last(101)


def test_a_config_that_goes_while_other_ranks_load_leaves_nothing_on_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, plain, holders = write_checkpoint(tmp_path / "b"), runner_module.Runner._load_slice, []
    met = threading.Barrier(2)

    def losing(self: Any, load: Any, *rest: Any) -> Any:
        report = plain(self, load, *rest)
        holders.append(self)
        met.wait(60)
        if self.comm.rank == 1:
            (folder / "config.json").unlink()
        return report

    monkeypatch.setattr(runner_module.Runner, "_load_slice", losing)
    recorder = Recorder([place(100, "b", folder, ranks=[[1, 2]])])
    run_threads(3, lambda comm: run_engine(comm, [], SETTINGS, recorder))
    assert "config.json is no file" in recorder.last(100)["message"]
    assert [(holder._models, len(holder.groups)) for holder in holders] == [({}, 1), ({}, 1)]


class Unloading(Recorder):
    """Looks what is in memory while a second model is being loaded, which ends then, and when it is there."""

    def __init__(self, messages: list[dict[str, Any]]) -> None:
        super().__init__(messages[:1])
        self.rest = messages[1:]
        self.seen = threading.Event()
        self.open |= {message["id"] for message in self.rest} | {104}

    def post(self, event: Event) -> None:
        super().post(event)
        if event["id"] == 100 and event["kind"] == "placed":
            for message in self.rest:
                self.messages.put(message)
        elif event["id"] == 101 and event["kind"] == "placed":
            self.messages.put({"op": "loaded", "id": 104})
        elif event["id"] == 103:
            self.seen.set()


def test_a_model_whose_ranks_load_another_one_is_unloaded_meanwhile(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages = [
        place(100, "a", folder, ranks=[[1]]),
        place(101, "b", folder, ranks=[[1, 2]]),
        {"op": "unload idle", "id": 102, "model": {"name": "a"}},
        {"op": "loaded", "id": 103},
    ]
    client, plain = Unloading(messages), runner_module.Runner._load_slice

    def slow(self: Any, load: Any, *rest: Any) -> Any:
        assert load.name == "a" or client.seen.wait(60)
        return plain(self, load, *rest)

    monkeypatch.setattr(runner_module.Runner, "_load_slice", slow)
    run_threads(3, lambda comm: run_engine(comm, [], SETTINGS, client))
    assert client.last(102)["kind"] == "done"
    assert client.last(103)["models"] == []
    assert [m["name"] for m in client.last(104)["models"]] == ["b"]
