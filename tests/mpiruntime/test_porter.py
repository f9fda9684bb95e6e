"""While a model is loaded, late and cancelled requests are answered; nothing else is lost or changes places."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints import PROMPT, reference_greedy, write_checkpoint
from support.worlds import Recorder, generate, named, run_engine

from ollampi.mpiruntime.engine_settings import EngineSettings
from ollampi.mpiruntime.errors import ModelError
from ollampi.mpiruntime.inbox import Event, Local
from ollampi.mpiruntime.porter import Answered, Porter
from ollampi.mpiruntime.request import Sampling
from ollampi.mpiruntime.runner import Runner
from ollampi.mpiruntime.thread_world import run_threads

GREEDY = Sampling(temperature=0.0)
SETTINGS = EngineSettings(cache_tokens=64, context_length=32, block_size=4, max_step_tokens=16)
LONG_S = 60.0  # for what happens at once


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("models") / "good")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("models") / "other", seed=1)


class Watcher(Recorder):
    """Knows when certain requests have ended, and what had to be said for that during the load."""

    def __init__(self, messages: list[dict[str, Any]], awaited: set[int], sent: list[dict[str, Any]]) -> None:
        super().__init__(messages)
        self.awaited, self.sent, self.ended = awaited, sent, threading.Event()

    def post(self, event: Event) -> None:
        super().post(event)
        if not self.awaited & self.open:
            self.ended.set()


def answers(
    size: int,
    client: Watcher,
    slow: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception | None = None,
    max_loaded_models: int = 3,
) -> Watcher:
    """Return the client after a server whose last rank needs, to load `slow`, until the awaited requests have ended."""
    plain = Runner._load_slice

    def wait_and_load(self: Any, message: Any, *rest: Any) -> Any:
        if self.comm.rank == size - 1 and message.path == str(slow):
            for more in client.sent:
                client.messages.put(more)
            assert client.ended.wait(LONG_S), client.log
            if error is not None:
                raise error
        return plain(self, message, *rest)

    monkeypatch.setattr(Runner, "_load_slice", wait_and_load)
    settings = EngineSettings(**{**vars(SETTINGS), "max_loaded_models": max_loaded_models})
    run_threads(size, lambda c: run_engine(c, [], settings, client))
    return client


@pytest.mark.parametrize("size", [1, 3])
def test_deadlines_are_kept_while_a_model_is_loaded(
    folder: Path, other: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that it is loaded for, one that runs on another model, one that waits; two have time."""
    messages = [
        generate(0, folder, PROMPT, sampling=GREEDY, max_tokens=10**6, context=32, timeout_s=0.5),
        named("b:latest", generate(1, other, PROMPT, sampling=GREEDY, max_tokens=5, timeout_s=0.3)),
        named("b:latest", generate(2, other, PROMPT, sampling=GREEDY, max_tokens=5, timeout_s=0.3)),
        named("b:latest", generate(3, other, PROMPT, sampling=GREEDY, max_tokens=5)),
        generate(4, folder, PROMPT, sampling=GREEDY, max_tokens=5),
    ]
    client = answers(size, Watcher(messages, {0, 1, 2}, []), other, monkeypatch)
    assert [client.last(i).get("code") for i in range(5)] == ["timeout"] * 3 + [None] * 2
    assert [sum(e["id"] == i and e["kind"] != "tokens" for e in client.log) for i in range(5)] == [1] * 5
    assert client.tokens(3) == reference_greedy(other, PROMPT, 5)
    assert client.tokens(4) == reference_greedy(folder, PROMPT, 5)


def test_a_load_without_a_prompt_has_a_deadline_too(folder: Path, other: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = {"op": "load", "id": 0, "model": {"name": "b:latest", "path": str(other)}, "context": None}
    messages = [
        {**load, "keep_alive_s": None, "timeout_s": 0.3},
        named("b:latest", generate(1, other, PROMPT, sampling=GREEDY, max_tokens=5)),
    ]
    client = answers(1, Watcher(messages, {0}, []), other, monkeypatch)
    assert client.last(0)["code"] == "timeout"
    assert client.tokens(1) == reference_greedy(other, PROMPT, 5)


def test_cancels_are_answered_while_a_model_is_loaded(
    folder: Path, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages = [named("b:latest", generate(i, other, PROMPT, sampling=GREEDY, max_tokens=5)) for i in (1, 2)]
    sent = [{"op": "cancel", "id": 1}, {"op": "cancel", "id": 2}, {"op": "cancel", "id": 9}]
    sent.append(generate(3, folder, PROMPT, sampling=GREEDY, max_tokens=5))
    watcher = Watcher(messages, {1, 2}, sent)
    watcher.open.add(3)
    client = answers(1, watcher, other, monkeypatch)
    assert [client.last(i)["reason"] for i in (1, 2, 3)] == ["cancel", "cancel", "length"]
    assert (client.tokens(1), client.tokens(2)) == ([], [])
    assert client.tokens(3) == reference_greedy(folder, PROMPT, 5)


def test_a_request_that_is_late_is_not_told_that_its_model_is_broken_too(
    other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages = [generate(i, other, PROMPT, sampling=GREEDY, max_tokens=5, timeout_s=0.1) for i in (1, 2)]
    client = answers(1, Watcher(messages, {1, 2}, []), other, monkeypatch, ModelError("broken"))
    assert sorted((e["id"], e["code"]) for e in client.log) == [(1, "timeout"), (2, "timeout")]


def test_those_that_wait_for_another_model_keep_their_deadlines_while_it_is_loaded(
    folder: Path, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages = [generate(0, folder, PROMPT, sampling=GREEDY, max_tokens=9)]
    messages += [named("b:latest", generate(i, other, PROMPT, sampling=GREEDY, max_tokens=5)) for i in (1, 2)]
    messages[2]["request"]["timeout_s"] = 0.5
    client = answers(1, Watcher(messages, {0, 2}, []), other, monkeypatch, max_loaded_models=1)
    assert client.last(2)["code"] == "timeout"
    assert client.tokens(1) == reference_greedy(other, PROMPT, 5)


def test_messages_keep_their_order_and_those_of_a_client_that_left_are_dropped() -> None:
    inbox = Local()
    porter = Porter(inbox, None, Counter())
    for number in range(3):
        inbox.messages.put({"op": "load", "id": number})
    porter.at_hand = porter.get(0)
    seen = threading.Event()
    with porter.standing_in(lambda now: seen.set() if inbox.messages.empty() else None):
        assert seen.wait(LONG_S)
    inbox.messages.put({"op": "load", "id": 3})
    kept = [porter.get(0) for _ in range(4)]
    assert [waiting and waiting.id for waiting in kept] == [1, 2, 3, None]
    porter.put_back([waiting for waiting in kept if waiting is not None])
    inbox.messages.put({"op": "gone"})

    def be_busy() -> None:
        with porter.standing_in(lambda now: None):
            while not inbox.messages.empty():
                pass

    with pytest.raises(Answered):
        be_busy()
    left = porter.get(0)
    assert left is not None
    assert left.message["op"] == "gone"
    assert porter.get(0) is None


def test_a_failure_of_the_stand_in_is_that_of_the_loop() -> None:
    def broken(now: float) -> None:
        raise ZeroDivisionError

    porter = Porter(Local(), None, Counter())
    with pytest.raises(ZeroDivisionError), porter.standing_in(broken):
        pass
