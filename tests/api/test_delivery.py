"""Lines reach a client exactly and in order, whichever thread sends them and however little it takes at once."""

from __future__ import annotations

import ast
import itertools
import logging
import random
import socket
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from support.deliveries import USAGE, Engine, Recorder, Waiter, text_line, token
from support.servers import wait_until

from ollampi.api.delivery import Delivery
from ollampi.api.engine_client import Done, EngineError, Event
from ollampi.api.engine_events import tokens_of
from ollampi.api.generation import Answer, Outcome, Piece
from ollampi.api.stream import NDJSON, growing_answer
from ollampi.api.text_tokenizer import TextTokenizer
from ollampi.api.worker import ClientSocket, Pipe
from ollampi.mpiruntime.request import Usage


class MoodyClient(ClientSocket):
    """A connection that takes a random part of what must not wait, often nothing."""

    rng = random.Random(1)

    def send(self, data: bytes, flags: int = 0) -> int:
        assert flags == socket.MSG_DONTWAIT
        if self.rng.random() < 0.3:
            raise BlockingIOError
        return super().send(data[: self.rng.choice([1, 5, 1000])], flags)


def pulled(answer: Answer, messages: list[dict[str, object]]) -> str:
    """Return the lines that an answer has where its own thread makes them all."""

    class Pulled:
        """A stream of events that are there already."""

        def __iter__(self) -> Iterator[Event]:
            yield from map(tokens_of, messages)
            yield Done("cancel", Usage(**USAGE))

        def cancel(self, reason: str) -> None:
            messages.clear()

    return "".join(Delivery(Pulled(), answer, text_line, None))


def connected(kind: type[ClientSocket]) -> tuple[ClientSocket, socket.socket]:
    """Return a server's and a client's end, with little room between them."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(listener.getsockname())
        accepted, _ = listener.accept()
    accepted.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    return kind.around(accepted), client


def unchunked(raw: bytes) -> bytes:
    """Return the content of chunks, checking each."""
    content = b""
    while raw:
        size, _, rest = raw.partition(b"\r\n")
        assert len(rest) >= int(size, 16) + 2
        assert rest[int(size, 16) :][:2] == b"\r\n"
        content, raw = content + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
    return content


def random_messages(rng: random.Random, vocabulary: int) -> list[dict[str, object]]:
    """Return what an engine says about one answer; now and then it goes in circles."""
    messages: list[dict[str, object]] = []
    for _ in range(rng.choice([0, 1, 5, 60])):
        tokens = [rng.randrange(vocabulary)] * 40 if rng.random() < 0.01 else rng.choices(range(vocabulary), k=1)
        messages.append({"kind": "tokens", "tokens": tokens + rng.choices(range(vocabulary), k=rng.choice([0, 0, 2]))})
    return [*messages, {"kind": "done", "reason": "length", "usage": USAGE}]


@pytest.mark.parametrize("seed", range(60))
def test_any_interleaving_gives_the_bytes_of_the_plain_way(text_tokenizer: TextTokenizer, seed: int) -> None:
    rng = random.Random(seed)
    messages = random_messages(rng, text_tokenizer.vocabulary_size)
    stops = rng.choice([[], ["e"], ["Hello", "\ufffd "]])
    server, client = connected(MoodyClient)
    chunked, engine = rng.random() < 0.7, Engine()
    received = bytearray()

    def bring() -> None:
        """Be the thread that reads the engine's socket."""
        for message in messages:
            engine.mailbox.put(message)
            time.sleep(rng.choice([0, 0, 0.0003]))

    def read() -> None:
        """Be a client, now and then a slow one."""
        while part := client.recv(rng.choice([1, 100, 10000])):
            received.extend(part)
            time.sleep(rng.choice([0, 0, 0.0003]))

    threads = [threading.Thread(target=work, daemon=True) for work in (bring, read)]
    for thread in threads:
        thread.start()
    pipe = Pipe(server, SimpleNamespace(chunked=chunked))
    for line in Delivery(engine.stream, Answer(text_tokenizer, [1], stops, None), text_line, pipe):
        data = line.encode()
        server.sendall(b"%X\r\n%b\r\n" % (len(data), data) if chunked else data)
    server.close()
    for thread in threads:
        thread.join(10)
    client.close()
    content = unchunked(bytes(received)) if chunked else bytes(received)
    assert content.decode() == pulled(Answer(text_tokenizer, [1], stops, None), list(messages))
    assert len(engine.cancelled) <= 1


def test_the_first_line_is_pulled_and_the_others_are_pushed(text_tokenizer: TextTokenizer) -> None:
    engine, pipe = Engine(), Recorder()
    ids = text_tokenizer.encode("Hello, world")
    waiter = Waiter(engine, Answer(text_tokenizer, [1], [], None), pipe)
    waiter.waits()
    engine.mailbox.put(token(ids[0]))
    assert isinstance(waiter.lines.get(timeout=5), str)
    waiter.waits()
    for number in ids[1:]:
        engine.mailbox.put(token(number))
    assert {name for _, name in pipe.sent} == {threading.current_thread().name}
    assert len(pipe.sent) == len(ids) - 1
    engine.mailbox.put({"kind": "done", "reason": "stop", "usage": USAGE})
    assert "stop" in str(waiter.lines.get(timeout=5))
    waiter.thread.join(5)


def test_a_client_that_takes_no_more_is_left_to_its_own_thread(text_tokenizer: TextTokenizer) -> None:
    engine, pipe = Engine(), Recorder()
    ids = text_tokenizer.encode("Hello, world and all the dogs")
    waiter = Waiter(engine, Answer(text_tokenizer, [1], [], None), pipe)
    engine.mailbox.put(token(ids[0]))
    waiter.lines.get(timeout=5)
    waiter.waits()
    pipe.full = True
    engine.mailbox.put(token(ids[1]))
    waiter.waits()
    assert [what for what, _ in pipe.sent][1:] == ["flush"]
    assert pipe.sent[1][1] == waiter.thread.name
    engine.mailbox.put(token(ids[2]))  # and back it is
    assert pipe.sent[2][1] == threading.current_thread().name
    engine.stream.cancel()
    assert isinstance(waiter.lines.get(timeout=5), EngineError)
    waiter.thread.join(5)


def test_a_stop_string_cancels_from_the_requests_own_thread(text_tokenizer: TextTokenizer) -> None:
    engine, pipe = Engine(), Recorder()
    waiter = Waiter(engine, Answer(text_tokenizer, [1], ["wor"], None), pipe)
    ids = text_tokenizer.encode("Hello, world")
    for number in ids:
        engine.mailbox.put(token(number))
        waiter.waits()
    waiter.thread.join(5)
    assert engine.cancelled == ["stop"]
    said = [waiter.lines.get(timeout=5)] + [line for line, _ in pipe.sent if line != "flush"]
    assert "".join(ast.literal_eval(str(line))[0] for line in said) == "Hello, "
    assert ast.literal_eval(str(waiter.lines.get(timeout=5)).partition(", Usage")[0] + ")")[1] == "stop"


def test_tokens_behind_the_end_are_no_part_of_the_answer(text_tokenizer: TextTokenizer) -> None:
    ids = text_tokenizer.encode("Hello, world and all the dogs")

    class Late(Engine):
        """An engine that goes on until it hears of the end."""

        def send(self, message: dict[str, object]) -> None:
            teller.start()

    def go_on() -> None:
        """Bring tokens while the request waits for what its answer cost."""
        wait_until(lambda: engine.mailbox._idle, 5, "the thread of the request")
        for number in ids:
            engine.mailbox.put(token(number))
        engine.mailbox.put({"kind": "done", "reason": "cancel", "usage": USAGE})

    engine, teller = Late(), threading.Thread(target=go_on, daemon=True)
    answer = Answer(text_tokenizer, [1], ["wor"], None)
    waiter = Waiter(engine, answer, Recorder())
    for number in itertools.takewhile(lambda _: answer.end is None, ids):
        engine.mailbox.put(token(number))
        waiter.waits()
    waiter.thread.join(5)
    assert text_tokenizer.decode(answer.tokens).startswith("Hello, wor")
    assert answer.tokens == ids[: len(answer.tokens)]


def test_a_failure_of_one_answer_ends_that_one_only(text_tokenizer: TextTokenizer, client, caplog) -> None:
    ids = text_tokenizer.encode("Hello, world")
    good, bad = Engine(), Engine()
    pipe, closed = Recorder(), []
    waiter = Waiter(good, Answer(text_tokenizer, [1], [], None), pipe)

    def line(piece: Piece | Outcome) -> str:
        """Fail at the second piece."""
        if threading.current_thread() is threading.main_thread():
            raise ValueError("no line for this")
        return "first\n"

    broken = iter(Delivery(bad.stream, Answer(text_tokenizer, [1], [], None), line, Recorder()))
    for engine in (good, bad):
        engine.mailbox.put(token(ids[0]))
    lines: list[bytes] = []

    def answer() -> None:
        """Be the thread of the request that fails."""
        with client.application.app_context():
            response = growing_answer(broken, NDJSON, lambda: closed.append(True))
            lines.extend(response.iter_encoded())
            response.close()

    thread = threading.Thread(target=answer, daemon=True)
    with caplog.at_level(logging.ERROR):
        thread.start()
        wait_until(lambda: bad.mailbox._idle and bad.mailbox._handle is not None, 5, "the first line")
        waiter.lines.get(timeout=5)
        waiter.waits()
        for engine in (bad, good):
            engine.mailbox.put(token(ids[1]))
        thread.join(5)
    assert lines == [b"first\n", b'{"error":"internal server error"}\n']
    assert "no line for this" in caplog.text
    assert closed == [True]
    assert len(pipe.sent) == 1
    good.stream.cancel()
    waiter.thread.join(5)
