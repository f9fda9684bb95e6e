"""Models come and go without harm to those that work: waiting for idle ones, checks first, the start model stays."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints import PROMPT, reference_greedy, write_checkpoint
from support.worlds import Recorder, generate, loaded, named, once_loaded, run_engine

from ollampi.mpiruntime.communicator import Communicator
from ollampi.mpiruntime.ending import DRAIN
from ollampi.mpiruntime.engine_settings import EngineSettings
from ollampi.mpiruntime.hosted import Models
from ollampi.mpiruntime.inbox import Event
from ollampi.mpiruntime.request import ModelRef, Sampling
from ollampi.mpiruntime.runner import Runner
from ollampi.mpiruntime.step import Stop
from ollampi.mpiruntime.thread_world import run_threads
from ollampi.mpiruntime.world import survey

GREEDY = Sampling(temperature=0.0)
ONE_MODEL = EngineSettings(
    cache_tokens=64, context_length=32, block_size=4, max_step_tokens=16, max_loaded_models=1, max_queue=4
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("models") / "good")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("models") / "other", seed=1)


def load(number: int, name: str, folder: Path, context: int | None = None) -> dict[str, Any]:
    model = {"name": name, "path": str(folder)}
    return {"op": "load", "id": number, "model": model, "context": context, "keep_alive_s": None}


def answers(size: int, messages: list[dict[str, Any]], settings: EngineSettings = ONE_MODEL) -> Recorder:
    recorder = run_threads(size, lambda c: run_engine(c, messages, settings))[0]
    assert recorder is not None
    return recorder


@pytest.mark.parametrize("size", [1, 3])
def test_a_request_for_a_larger_context_waits_for_running_ones_and_later_ones_do_not_pass(
    folder: Path, size: int
) -> None:
    long = PROMPT * 3
    messages = [
        generate(1, folder, PROMPT, sampling=GREEDY, max_tokens=10),
        generate(2, folder, long, sampling=GREEDY, max_tokens=4, context=64),
        generate(3, folder, PROMPT, sampling=GREEDY, max_tokens=2),
        {"op": "loaded", "id": 4},
    ]
    recorder = answers(size, messages)
    assert recorder.tokens(1) == reference_greedy(folder, PROMPT, 10)
    assert recorder.tokens(2) == reference_greedy(folder, long, 4)
    assert recorder.tokens(3) == reference_greedy(folder, PROMPT, 2)
    first = {number: next(i for i, e in enumerate(recorder.log) if e["id"] == number) for number in (1, 2, 3)}
    assert first[1] < first[2]
    assert next(e["id"] for e in recorder.log if e["kind"] == "done") == 1


def test_two_models_take_turns_where_one_fits(folder: Path, other: Path) -> None:
    messages = [
        named(name, generate(i, path, PROMPT, sampling=GREEDY, max_tokens=4))
        for i, (name, path) in enumerate([("a:latest", folder), ("b:latest", other), ("a:latest", folder)])
    ]
    recorder = answers(2, messages)
    for i, path in enumerate((folder, other, folder)):
        assert recorder.tokens(i) == reference_greedy(path, PROMPT, 4)


def test_the_waiting_room_has_the_queues_limit(folder: Path, other: Path) -> None:
    messages = [generate(0, folder, PROMPT, max_tokens=3)]
    messages += [named("b:latest", generate(i, other, PROMPT, max_tokens=1)) for i in range(1, 7)]
    recorder = answers(1, once_loaded(folder, messages))
    assert [recorder.last(i)["kind"] for i in range(7)] == ["done"] * 5 + ["error"] * 2
    assert recorder.last(6)["code"] == "busy"


class Canceller(Recorder):
    """Cancels request 2, which waits, when request 1 has two tokens; leaves a note where one is given."""

    def __init__(self, messages: list[dict[str, Any]], comm: Communicator, note: int | None) -> None:
        super().__init__(messages)
        self.comm, self.note = comm, note

    def post(self, event: Event) -> None:
        super().post(event)
        if len(self.tokens(1)) == 2 and event["id"] == 1:
            if self.note is None:
                self.messages.put({"op": "cancel", "id": 2})
            else:
                self.comm.notify(self.note)


@pytest.mark.parametrize("note", [None, DRAIN])
def test_what_waits_can_be_cancelled_and_is_refused_when_the_server_drains(
    folder: Path, other: Path, note: int | None
) -> None:
    messages = [
        generate(1, folder, PROMPT, sampling=GREEDY, max_tokens=8),
        named("b:latest", generate(2, other, PROMPT, max_tokens=8)),
    ]
    clients: list[Canceller] = []

    def work(comm: Communicator) -> None:
        clients.append(Canceller(messages, comm, note))
        run_engine(comm, messages, ONE_MODEL, clients[0])

    run_threads(1, work)
    assert clients[0].tokens(1) == reference_greedy(folder, PROMPT, 8)
    assert clients[0].tokens(2) == []
    end = clients[0].last(2)
    assert end["kind"] == "done" if note is None else end["code"] == "shutdown"


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("damage", ["config", "header", "memory"])
def test_a_model_that_cannot_be_loaded_leaves_the_loaded_one_alone(
    folder: Path, other: Path, tmp_path: Path, size: int, damage: str
) -> None:
    bad = tmp_path / "bad"
    bad.mkdir()
    for file in other.iterdir():
        (bad / file.name).write_bytes(file.read_bytes())
    if damage == "header":
        os.truncate(bad / "model.safetensors", 1000)
    elif damage == "memory":
        config = json.loads((bad / "config.json").read_text())
        (bad / "config.json").write_text(json.dumps(config | {"intermediate_size": 2**34}))
    else:
        (bad / "config.json").write_text("{")
    messages = [load(1, "a:latest", folder), load(2, "b:latest", bad), {"op": "loaded", "id": 3, "behind": [1, 2]}]
    recorder = answers(size, messages)
    assert recorder.last(2)["code"] == "model"
    assert [m["name"] for m in recorder.last(3)["models"]] == ["a:latest"]


@pytest.mark.parametrize("victim", [0, 1])
def test_a_file_system_that_fails_on_one_rank_is_an_error_of_the_load_only(
    folder: Path, other: Path, monkeypatch: pytest.MonkeyPatch, victim: int
) -> None:
    from ollampi.mpiruntime import runner as runner_module

    plain = runner_module.Runner._load_slice

    def broken(self: Any, message: Any, *rest: Any) -> Any:
        if self.comm.rank == victim and message.path == str(other):
            raise OSError(5, "Input/output error")
        return plain(self, message, *rest)

    monkeypatch.setattr(runner_module.Runner, "_load_slice", broken)
    messages = [load(1, "b:latest", other), generate(2, folder, PROMPT, sampling=GREEDY, max_tokens=3)]
    recorder = answers(2, messages)
    assert (recorder.last(1)["code"], "Input/output error" in recorder.last(1)["message"]) == ("model", True)
    assert recorder.tokens(2) == reference_greedy(folder, PROMPT, 3)


def test_a_read_error_names_the_file_and_the_tensor(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", broken)
    message = answers(1, [load(1, "a:latest", folder)]).last(1)["message"]
    assert "model.safetensors: tensor 'model." in message
    assert "Input/output error" in message


def test_the_start_model_stays_after_it_was_replaced_and_loaded_again(folder: Path, other: Path) -> None:
    def work(comm: Communicator) -> list[float]:
        runner = Runner(comm, survey(comm))
        models = Models(runner, ONE_MODEL)
        start, second = ModelRef("a:latest", str(folder)), ModelRef("b:latest", str(other))
        kept = [models.pin(start).keep_s]
        kept += [loaded(models, *asked).keep_s for asked in ((second,), (start,), (start, 64))]
        runner.lead(Stop())
        return kept

    assert run_threads(1, work)[0] == [-1.0, 300.0, -1.0, -1.0]


def test_a_model_that_may_go_makes_room_before_one_that_stays(folder: Path, other: Path) -> None:
    settings = EngineSettings(cache_tokens=64, context_length=32, block_size=4, max_loaded_models=2)

    def work(comm: Communicator) -> list[str]:
        runner = Runner(comm, survey(comm))
        models = Models(runner, settings)
        models.pin(ModelRef("a:latest", str(folder)))
        for name in ("b:latest", "c:latest"):
            loaded(models, ModelRef(name, str(other)))
        runner.lead(Stop())
        return [m.name for m in models.listing()]

    assert run_threads(1, work)[0] == ["a:latest", "c:latest"]
