"""Stream from the real server process while the engine speaks step by step: framing, slow clients, failures."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import threading
from collections.abc import Iterator

import pytest
from support.fronts import arguments, ask, connect, running_front

USAGE = {"prompt_tokens": 2, "generated_tokens": 3}
DONE = {"kind": "done", "reason": "stop", "usage": USAGE}


@pytest.fixture
def front(coordinator, listener, models_folder, tmp_path) -> Iterator[subprocess.Popen[bytes]]:
    """Return a running server process, whose engine says nothing by itself; it must have logged nothing."""
    coordinator.silent = True
    text = arguments(listener, coordinator.address, models_folder, os.getpid())
    with running_front(listener, text, tmp_path) as process:
        yield process
        process.terminate()
        assert process.stderr.read() == b""


def raw_request(listener: socket.socket, version: str = "1.1", header: str = "", room: int | None = None):
    """Return a plain connection on which an answer was asked for."""
    client = socket.socket()
    if room is not None:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
    client.settimeout(10)
    client.connect(listener.getsockname())
    body = '{"model":"demo","prompt":"x"}'
    head = f"POST /api/generate HTTP/{version}\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n{header}\r\n"
    client.sendall((head + body).encode())
    return client


def read_until(client: socket.socket, end: bytes) -> bytes:
    """Return what comes up to `end`."""
    received = b""
    while not received.endswith(end):
        part = client.recv(65536)
        assert part, received
        received += part
    return received


def texts(lines: bytes) -> str:
    """Return the text of the lines of an answer."""
    return "".join(json.loads(line)["response"] for line in lines.splitlines())


def chunks(raw: bytes) -> list[bytes]:
    """Return the chunks of a whole chunked body."""
    found = []
    while raw:
        size, _, raw = raw.partition(b"\r\n")
        found.append(raw[: int(size, 16)])
        assert raw[int(size, 16) :][:2] == b"\r\n"
        raw = raw[int(size, 16) + 2 :]
    assert found.pop() == b""
    return found


def test_each_token_arrives_before_the_next_is_made_on_one_connection_kept_alive(
    front, coordinator, listener, tokenizer
):
    ids = tokenizer.encode("Hello, world and 🙂").ids
    connection = connect(listener)
    for _ in range(3):
        connection.request("POST", "/api/generate", '{"model":"demo","prompt":"x"}')
        number = coordinator.expect("generate")["id"]
        coordinator.send(number, ids[0])
        response = connection.getresponse()
        lines = [response.readline()]
        for token in ids[1:]:
            coordinator.send(number, token)
            if tokenizer.decode(ids[: ids.index(token) + 1]).isascii():  # else a part of the last character
                lines.append(response.readline())
        coordinator.send(number, **DONE)
        lines += response.read().splitlines(keepends=True)
        assert texts(b"".join(lines)) == "Hello, world and 🙂"
        assert json.loads(lines[-1])["context"][-len(ids) :] == ids
    connection.close()


@pytest.mark.parametrize(
    ("version", "header", "chunked", "keeps"),
    [
        ("1.1", "", True, True),
        ("1.1", "Connection: close\r\n", True, False),
        ("1.0", "", False, False),
        ("1.0", "Connection: keep-alive\r\n", False, False),
    ],
)
def test_framing(front, coordinator, listener, tokenizer, version, header, chunked, keeps):
    ids = tokenizer.encode("Hello, world").ids
    with raw_request(listener, version, header) as client:
        number = coordinator.expect("generate")["id"]
        coordinator.send(number, ids[0])
        received = read_until(client, b"}\n\r\n" if chunked else b"}\n")
        for token in ids[1:]:
            coordinator.send(number, token)
            received += read_until(client, b"}\n\r\n" if chunked else b"}\n")
        coordinator.send(number, **DONE)
        if keeps:
            received += read_until(client, b"\r\n0\r\n\r\n")
        else:
            while part := client.recv(65536):
                received += part
    head, _, body = received.partition(b"\r\n\r\n")
    assert head.startswith(f"HTTP/{version} 200 ".encode())
    assert (b"Transfer-Encoding: chunked" in head) == chunked
    assert (b"Connection: keep-alive" in head) == keeps
    lines = chunks(body) if chunked else body.splitlines(keepends=True)
    assert len(lines) == len(ids) + 1
    assert texts(b"".join(lines)) == "Hello, world"


def test_a_client_that_reads_nothing_holds_up_nobody(front, coordinator, listener, tokenizer):
    token = tokenizer.encode("Hello").ids[0]
    with contextlib.ExitStack() as stack:
        stuck = [stack.enter_context(raw_request(listener, room=4096)) for _ in range(3)]
        numbers = [coordinator.expect("generate")["id"] for _ in stuck]
        connection = ask(listener)
        number = coordinator.expect("generate")["id"]
        coordinator.send(number, token)
        with connection.getresponse() as response:
            assert json.loads(response.readline())["response"]
            for i in range(300):
                for other in numbers:
                    for _ in range(100):
                        coordinator.send(other, token, 266 + i % 40)
                coordinator.send(number, token, 266 + i % 40)
                assert json.loads(response.readline())["response"]
        connection.close()
    cancelled = {coordinator.expect("cancel")["id"] for _ in range(4)}
    assert cancelled == {*numbers, number}


def test_a_slow_client_gets_every_byte_in_order(front, coordinator, listener, tokenizer):
    ids = [266 + i % 50 for i in range(20_000)]
    with raw_request(listener, room=4096) as client:
        number = coordinator.expect("generate")["id"]

        def speak() -> None:
            """Be the engine, much faster than the client."""
            for token in ids:
                coordinator.send(number, token)
            coordinator.send(number, **DONE)

        thread = threading.Thread(target=speak, daemon=True)
        thread.start()
        thread.join(30)
        _, _, body = read_until(client, b"\r\n0\r\n\r\n").partition(b"\r\n\r\n")
    lines = chunks(body)
    assert texts(b"".join(lines)) == tokenizer.decode(ids)
    assert json.loads(lines[-1])["context"][-len(ids) :] == ids


@pytest.mark.parametrize("failure", ["refused", "broken"])
def test_a_failure_in_the_stream_is_its_last_line(front, coordinator, listener, tokenizer, failure):
    token = tokenizer.encode("Hello").ids[0]
    connection = ask(listener)
    number = coordinator.expect("generate")["id"]
    coordinator.send(number, token)
    response = connection.getresponse()
    response.readline()
    coordinator.send(number, token)
    response.readline()
    if failure == "refused":
        coordinator.send(number, kind="error", code="timeout", message="too late")
    else:
        coordinator.hang_up()
    text = "too late" if failure == "refused" else "the engine went away; try again in a few seconds"
    assert json.loads(response.read()) == {"error": text}
    connection.request("GET", "/")  # the connection is as good as before
    assert connection.getresponse().read() == b"Ollama is running"
    connection.close()


def test_a_client_that_leaves_while_its_lines_are_pushed_cancels(front, coordinator, listener, tokenizer):
    token = tokenizer.encode("Hello").ids[0]
    with raw_request(listener) as client:
        number = coordinator.expect("generate")["id"]
        for _ in range(3):
            coordinator.send(number, token)
            read_until(client, b"}\n\r\n")
    with contextlib.suppress(OSError):
        coordinator.send(number, token)
    assert coordinator.expect("cancel", timeout_s=2.0)["id"] == number
