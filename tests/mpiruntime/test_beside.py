"""Models are read beside the steps of others on the same ranks: no step waits, no answer differs, nothing stays."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.checkpoints import PROMPT, reference_greedy, write_checkpoint
from support.groups import load_on, unload
from support.worlds import Recorder, generate, lead, load_message, logits_in_pieces, named, place, run_engine

from ollampi.mpiruntime import reading
from ollampi.mpiruntime.communicator import Communicator
from ollampi.mpiruntime.ending import END
from ollampi.mpiruntime.engine_settings import EngineSettings
from ollampi.mpiruntime.errors import ModelError
from ollampi.mpiruntime.inbox import Event
from ollampi.mpiruntime.request import Sampling
from ollampi.mpiruntime.runner import Runner
from ollampi.mpiruntime.step import Unload
from ollampi.mpiruntime.thread_world import run_threads

GREEDY = Sampling(temperature=0.0)
SETTINGS = EngineSettings(context_length=64, cache_tokens=256, block_size=4, max_step_tokens=7, max_loaded_models=9)
LONG_S = 60.0  # for what happens at once


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: write_checkpoint(root / name, seed=seed) for seed, name in enumerate("ab")}


class Gate:
    """Holds every rank up in the middle of the load of a folder, until it is opened; begun: once a rank is there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path, error: Exception | None = None) -> None:
        self.begun, self.opened = threading.Event(), threading.Event()
        plain = reading._read

        def read(file: int, view: memoryview, offset: int) -> int:
            if Path(f"/proc/self/fd/{file}").resolve().parent == folder.resolve():
                self.begun.set()
                assert self.opened.wait(LONG_S)
                if error is not None:
                    raise error
            return plain(file, view, offset)

        monkeypatch.setattr(reading, "_read", read)


class Client(Recorder):
    """Opens a gate when answer 1 has some more tokens since the load began; calls `begun` when it has begun."""

    def __init__(self, messages: list[dict[str, Any]], gate: Gate, more: int, begun: Callable[[], None]) -> None:
        super().__init__(messages)
        self.gate, self.more, self.begun = gate, more, begun
        self.seen = 0

    def post(self, event: Event) -> None:
        super().post(event)
        if event["id"] == 1 and self.gate.begun.is_set():
            if not self.seen:
                self.begun()
            self.seen += len(event.get("tokens", []))
            if self.seen >= self.more:
                self.gate.opened.set()


def nothing() -> None:
    pass


def ask(number: int, name: str, folder: Path, count: int) -> dict[str, Any]:
    return named(name, generate(number, folder, PROMPT[:9], sampling=GREEDY, max_tokens=count))


def answers(size: int, client: Recorder) -> Recorder:
    found = run_threads(size, lambda c: run_engine(c, [], SETTINGS, client))[0]
    assert found is not None
    return found


def streaming(folders: dict[str, Path], *more: dict[str, Any], count: int = 40) -> list[dict[str, Any]]:
    """Return messages that load a, have it answer, and then do more."""
    load = {"op": "load", "id": 0, "model": {"name": "a", "path": str(folders["a"])}, "context": None}
    behind = [ask(1, "a", folders["a"], count), *more]
    return [{**load, "keep_alive_s": None}, *({**message, "behind": [0]} for message in behind)]


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("ranks", ["all", "last"])
def test_steps_are_made_between_the_begin_and_the_end_of_a_load(
    folders: dict[str, Path], size: int, ranks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The load ends only when the answer has 8 more tokens: it must not wait for it."""
    group = list(range(size)) if ranks == "all" else [size - 1]
    gate = Gate(monkeypatch, folders["b"])
    messages = streaming(folders, place(2, "b", folders["b"], ranks=[group]), ask(3, "b", folders["b"], 6))
    messages[-1]["behind"] = [2]
    client = answers(size, Client(messages, gate, 8, nothing))
    assert client.last(2)["kind"] == "placed"
    assert client.tokens(1) == reference_greedy(folders["a"], PROMPT[:9], 40)
    assert client.tokens(3) == reference_greedy(folders["b"], PROMPT[:9], 6)


@pytest.mark.parametrize("size", [1, 3])
def test_a_load_that_fails_in_the_middle_changes_nothing_and_may_be_tried_again(
    folders: dict[str, Path], size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch, folders["b"], OSError(5, "Input/output error"))
    messages = streaming(folders, ask(2, "b", folders["b"], 6), ask(3, "b", folders["b"], 6))
    messages += [{**ask(4, "b", folders["b"], 6), "behind": [1, 2, 3]}, {"op": "loaded", "id": 5, "behind": [2, 3, 4]}]
    client = answers(size, Client(messages, gate, 8, nothing))
    assert ["Input/output error" in client.last(i)["message"] for i in (2, 3, 4)] == [True] * 3
    assert [m["name"] for m in client.last(5)["models"]] == ["a"]
    assert client.tokens(1) == reference_greedy(folders["a"], PROMPT[:9], 40)


@pytest.mark.parametrize("size", [1, 2])
def test_a_failure_is_forgotten_once_it_was_told(
    folders: dict[str, Path], size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        gate = Gate(patch, folders["b"], OSError(5, "Input/output error"))
        messages = streaming(folders, ask(2, "b", folders["b"], 6))
        messages.append({**ask(3, "b", folders["b"], 6), "behind": [2]})

        class Mending(Client):
            def post(self, event: Event) -> None:
                if event["id"] == 2:
                    patch.undo()
                super().post(event)

        client = answers(size, Mending(messages, gate, 3, nothing))
    assert client.last(2)["code"] == "model"
    assert client.tokens(3) == reference_greedy(folders["b"], PROMPT[:9], 6)


@pytest.mark.parametrize("size", [1, 3])
def test_loads_and_unloads_in_the_middle_of_a_load_wait_for_it(
    folders: dict[str, Path], size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch, folders["b"])
    c = {"op": "load", "model": {"name": "c", "path": str(folders["a"])}, "context": None, "keep_alive_s": None}
    middle = [{**c, "id": 3}, {"op": "unload", "id": 4, "model": {"name": "b"}}, {"op": "loaded", "id": 5}]
    messages = streaming(folders, place(2, "b", folders["b"], shards=size))
    messages.append({"op": "loaded", "id": 6, "behind": [2, 3, 4, 5]})
    client = Client(messages, gate, 8, lambda: [client.messages.put(m) for m in middle] and None)
    client.open |= {3, 4, 5}
    answers(size, client)
    assert [client.last(i)["kind"] for i in (2, 3, 4)] == ["placed", "done", "done"]
    assert [[m["name"] for m in client.last(i)["models"]] for i in (5, 6)] == [["a"], ["a", "c"]]
    assert client.tokens(1) == reference_greedy(folders["a"], PROMPT[:9], 40)


@pytest.mark.parametrize("size", [1, 3])
def test_a_job_that_ends_in_the_middle_of_a_load_gives_it_up(
    folders: dict[str, Path], size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch, folders["b"])
    before = threading.active_count()
    messages = streaming(folders, ask(2, "b", folders["b"], 6), count=10**6)

    def work(comm: Communicator) -> Recorder | None:
        def stop() -> None:
            comm.notify(END)
            gate.opened.set()

        return run_engine(comm, [], SETTINGS, Client(messages, gate, 10**6, stop) if comm.rank == 0 else None)

    client = run_threads(size, work)[0]
    assert client is not None
    assert [client.last(i)["code"] for i in (1, 2)] == ["shutdown"] * 2
    assert threading.active_count() == before


@pytest.mark.parametrize("size", [1, 2])
def test_messages_are_taken_while_a_draft_model_is_loaded(
    folders: dict[str, Path], size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The load of the draft model ends only when a message that came in the middle of it was answered."""

    class Asking(Recorder):
        def post(self, event: Event) -> None:
            if event["kind"] == "done" and event["id"] == 0:
                self.gate = Gate(monkeypatch, folders["b"])
                threading.Thread(target=self.ask, daemon=True).start()
            elif event["id"] == 5:
                self.gate.opened.set()
            super().post(event)

        def ask(self) -> None:
            if self.gate.begun.wait(LONG_S):
                self.messages.put({"op": "loaded", "id": 5})

    name = "test:latest"
    answer = named(name, generate(1, folders["a"], PROMPT[:9], sampling=GREEDY, max_tokens=6))
    messages = [{"op": "unload", "id": 0, "model": {"name": name}}, {**answer, "behind": [0]}]
    client = Asking(messages)
    client.open.add(5)
    draft = folders["a"], folders["b"]
    run_threads(size, lambda c: run_engine(c, [], SETTINGS, client, draft))
    assert client.last(5)["models"] == []
    assert client.tokens(1) == reference_greedy(folders["a"], PROMPT[:9], 6)


@pytest.mark.parametrize("ranks", [(0, 1), (1, 2), (2,)])
def test_a_load_that_is_unloaded_before_it_is_there_leaves_nothing_and_its_ranks_go_on(
    folders: dict[str, Path], ranks: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch, folders["b"])

    def work(runner: Runner) -> tuple[torch.Tensor, int]:
        runner.lead_load(load_message(folders["a"]))
        expected = logits_in_pieces(runner, PROMPT[:6], [6])
        load = load_message(folders["b"])
        load = type(load)(**{**vars(load), "model": 7, "ranks": list(ranks)})
        runner.begin(load)
        assert gate.begun.wait(LONG_S)
        assert torch.equal(logits_in_pieces(runner, PROMPT[:6], [6]), expected)
        runner.lead(Unload(7))
        gate.opened.set()
        while not runner.loaded(load):
            runner.meanwhile()
        with pytest.raises(ModelError, match="given up"):
            runner.finish(load)
        assert load_on(runner, 8, folders["b"], ranks) == list(ranks)
        unload(runner, 8)
        return logits_in_pieces(runner, PROMPT[:6], [6]) - expected, len(runner.groups)

    found = run_threads(3, lambda comm: lead(comm, work))[0]
    assert found is not None
    assert (found[0].abs().max().item(), found[1]) == (0.0, 1)


@pytest.mark.parametrize("size", [1, 2])
def test_a_folder_that_cannot_be_looked_at_fails_its_load_alone(
    folders: dict[str, Path], size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Path.is_file

    def look(path: Path) -> bool:
        if folders["b"] in (path, *path.parents):
            raise OSError(116, "Stale file handle")
        return plain(path)

    monkeypatch.setattr(Path, "is_file", look)
    client = answers(size, Recorder(streaming(folders, ask(2, "b", folders["b"], 6))))
    assert client.last(2)["code"] == "model"
    assert "Stale file handle; check the folder" in client.last(2)["message"]
    assert client.tokens(1) == reference_greedy(folders["a"], PROMPT[:9], 40)
