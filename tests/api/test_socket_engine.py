"""Check the engine client against a coordinator at the other end of a real socket."""

from __future__ import annotations

import threading
from array import array
from collections.abc import Iterator

import pytest

from ollampi.api.engine_client import Done, Embedding, EngineError, Tokens
from ollampi.api.errors import answer_for, comes_back
from ollampi.api.socket_engine import SocketEngine
from ollampi.api.whereabouts import Fixed
from ollampi.mpiruntime.request import EmbedRequest, GenerateRequest, LoadedModel, ModelRef, Sampling, TokenLogprob

MODEL = ModelRef("demo:latest", "/models/demo")
REQUEST = GenerateRequest(MODEL, [1, 2], Sampling(seed=5), [7], max_tokens=3, keep_alive_s=-1.0)


@pytest.fixture
def socket_engine(coordinator) -> Iterator[SocketEngine]:
    """Return an engine that talks to the fake coordinator."""
    engine = SocketEngine(Fixed(coordinator.address))
    yield engine
    engine.close()


def test_generate(coordinator, socket_engine):
    coordinator.tokens = [4, 5]
    events = list(socket_engine.generate(REQUEST))
    message = coordinator.expect("generate")
    assert GenerateRequest.from_wire(message["request"]) == REQUEST
    assert events[:2] == [Tokens([t], [TokenLogprob(t, -1.0, [(3, -2.0)])]) for t in (4, 5)]
    assert isinstance(events[2], Done)
    assert (events[2].reason, events[2].usage.prompt_tokens) == ("stop", 9)


def test_embed(coordinator, socket_engine):
    request = EmbedRequest(MODEL, [array("i", [4, 5]), array("i", [6])], pooling="mean", context=64)
    events = list(socket_engine.embed(request))
    assert EmbedRequest.from_wire(coordinator.expect("embed")["request"]) == request
    assert events[:2] == [Embedding(0, array("f", [4, 5])), Embedding(1, array("f", [6]))]
    assert isinstance(events[2], Done)
    coordinator.silent = True
    stream = socket_engine.embed(request)
    next(iter(stream))
    stream.close()
    number = coordinator.expect("embed")["id"]
    assert coordinator.expect("cancel")["id"] == number


def test_load_unload_loaded(coordinator, socket_engine):
    (loaded,) = socket_engine.load(MODEL, 128, None)
    message = coordinator.expect("load")
    assert isinstance(loaded, Done)
    assert (ModelRef(**message["model"]), message["context"], message["keep_alive_s"]) == (MODEL, 128, None)
    socket_engine.unload(MODEL)
    assert ModelRef(**coordinator.expect("unload")["model"]) == MODEL
    coordinator.models = [vars(LoadedModel("m", "/m", 1, 2, 3, None))]
    assert socket_engine.loaded() == [LoadedModel("m", "/m", 1, 2, 3, None)]
    assert len(coordinator.connections) == 1


def test_metrics(coordinator, socket_engine, monkeypatch):
    coordinator.samples = [("ollampi_requests_running", {"model": "m"}, 2)]
    assert socket_engine.metrics() == [("ollampi_requests_running", {"model": "m"}, 2)]
    monkeypatch.setattr("ollampi.api.socket_engine.METRICS_TIMEOUT_S", 0.05)
    coordinator.deaf = True  # as while a model is loaded
    with pytest.raises(EngineError, match="does not answer") as caught:
        socket_engine.metrics()
    assert caught.value.code == "unavailable"
    assert socket_engine._connection._inboxes == {}


def test_errors_keep_their_code(coordinator, socket_engine):
    coordinator.error = ("busy", "full")
    for call in (lambda: list(socket_engine.generate(REQUEST)), lambda: list(socket_engine.load(MODEL, None, 1.0))):
        with pytest.raises(EngineError, match="full") as caught:
            call()
        assert caught.value.code == "busy"


def test_cancel_is_sent_once_and_never_after_the_end(coordinator, socket_engine):
    coordinator.silent = True
    stream = socket_engine.generate(REQUEST)
    number = coordinator.expect("generate")["id"]
    stream.cancel()
    stream.cancel()
    assert coordinator.expect("cancel")["id"] == number
    assert [event.reason for event in stream] == ["cancel"]
    stream.cancel()
    socket_engine.loaded()
    coordinator.expect("loaded")


@pytest.mark.parametrize("read", [0, 1, 2])
def test_a_closed_stream_leaves_nothing_behind(coordinator, socket_engine, read):
    coordinator.tokens, coordinator.silent = [4], read < 2
    stream = socket_engine.generate(REQUEST)
    number = coordinator.expect("generate")["id"]
    events = iter(stream)
    for _ in range(read):
        next(events)
    stream.close()
    stream.close()
    stream.cancel()
    assert socket_engine._connection._inboxes == {}
    if read < 2:
        assert coordinator.expect("cancel")["id"] == number
    socket_engine.loaded()
    coordinator.expect("loaded")


def test_a_coordinator_that_ignores_a_cancel_does_not_hold_the_request(coordinator, socket_engine, monkeypatch):
    monkeypatch.setattr("ollampi.api.socket_engine.CANCEL_TIMEOUT_S", 0.05)
    coordinator.silent = coordinator.deaf = True
    stream = socket_engine.generate(REQUEST)
    threading.Timer(0.05, stream.cancel).start()
    with pytest.raises(EngineError) as caught:
        next(iter(stream))
    assert caught.value.code == "cancelled"


def test_broken_connection_fails_all_streams_and_the_next_request_connects_again(coordinator, socket_engine):
    coordinator.silent = True
    streams = [socket_engine.generate(REQUEST) for _ in range(3)]
    for _ in streams:
        coordinator.expect("generate")
    coordinator.hang_up()
    for stream in streams:
        with pytest.raises(EngineError, match="the engine went away") as caught:
            next(iter(stream))
        assert caught.value.code == "unavailable"
        stream.cancel()
    assert socket_engine.loaded() == []
    coordinator.hang_up()
    assert socket_engine.loaded() == []


def test_an_engine_that_says_why_it_ends_is_not_asked_again(coordinator, socket_engine):
    coordinator.silent = True
    stream = socket_engine.generate(REQUEST)
    coordinator.expect("generate")
    coordinator.send(0, kind="ending", message="the server is ending")
    coordinator.hang_up()
    with pytest.raises(EngineError, match=r"^the server is ending$") as caught:
        next(iter(stream))
    assert caught.value.code == "ended"
    assert answer_for(caught.value) == (503, "the server is ending")
    assert not comes_back(caught.value)
    assert comes_back(EngineError("unavailable", "x"))
    stream.cancel()
    for _ in range(2):
        with pytest.raises(EngineError, match=r"^the server is ending$"):
            socket_engine.loaded()
    assert len(coordinator.connections) == 0


def test_no_coordinator():
    with pytest.raises(EngineError, match="not running") as caught:
        SocketEngine(Fixed("unix:@ollampi-nobody-is-here")).loaded()
    assert caught.value.code == "unavailable"


def test_many_requests_at_once_share_one_connection(coordinator, socket_engine):
    coordinator.tokens = list(range(20))
    results: list[list[int]] = []

    def work() -> None:
        for _ in range(5):
            events = list(socket_engine.generate(REQUEST))
            results.append([t for e in events if isinstance(e, Tokens) for t in e.tokens])

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert results == [list(range(20))] * 40
    assert len(coordinator.connections) == 1
