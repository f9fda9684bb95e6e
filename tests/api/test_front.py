"""Run the real server process: streams, clients that leave, signals, and the end of its parent."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from support.fronts import (
    MODULE,
    SOURCE,
    arguments,
    ask,
    connect,
    process_group,
    running_front,
    start,
    wait_until_alive,
)

PARENT = """
import os, subprocess, sys
text = sys.argv[1].replace("PARENT", str(os.getpid()))
subprocess.run([sys.executable, "-m", "ollampi.api.front", text], pass_fds=[int(sys.argv[2])])
"""


@pytest.fixture
def front(coordinator, listener, models_folder, tmp_path) -> Iterator[subprocess.Popen[bytes]]:
    """Return a running server process."""
    text = arguments(listener, coordinator.address, models_folder, os.getpid())
    with running_front(listener, text, tmp_path) as process:
        yield process


def test_streaming_and_keep_alive(front, coordinator, listener, tokenizer):
    coordinator.tokens = tokenizer.encode("Hello, world").ids
    connection = connect(listener)
    for _ in range(2):
        connection.request("POST", "/api/generate", '{"model":"demo","prompt":"x"}')
        response = connection.getresponse()
        assert response.headers["Content-Type"] == "application/x-ndjson"
        parts = [json.loads(line) for line in response.read().splitlines()]
        assert "".join(p["response"] for p in parts) == "Hello, world"
        assert parts[-1]["done"]
    connection.close()


def test_lines_arrive_while_the_answer_grows(front, coordinator, listener, tokenizer):
    coordinator.silent = True
    coordinator.tokens = tokenizer.encode("Hello").ids
    connection = ask(listener)
    response = connection.getresponse()
    assert json.loads(response.readline())["response"]
    coordinator.expect("generate")
    coordinator.hang_up()
    lines = response.read().splitlines()
    assert json.loads(lines[-1]) == {"error": "the engine went away; try again in a few seconds"}
    connection.close()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/generate", {"model": "demo", "prompt": "x", "stream": False}),
        ("/v1/chat/completions", {"model": "demo", "messages": [{"role": "user", "content": "x"}]}),
        ("/v1/messages", {"model": "demo", "max_tokens": 3, "messages": [{"role": "user", "content": "x"}]}),
    ],
)
def test_nobody_is_told_to_come_back_to_a_server_that_ends(front, coordinator, listener, path, body):
    coordinator.silent = True
    text = "the server is ending, since rank 1 (host b) has not come to all_reduce for 30 s; it must be started again"
    connection = connect(listener)
    for turn in range(2):  # what waits, and what comes later
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        if not turn:
            coordinator.expect("generate")
            coordinator.send(0, kind="ending", message=text)
            coordinator.hang_up()
        response = connection.getresponse()
        assert (response.status, response.headers["Retry-After"]) == (503, None)
        assert text in response.read().decode()
    connection.close()


@pytest.mark.parametrize("first", [False, True], ids=["before the first token", "in the stream"])
@pytest.mark.parametrize("stream", [False, True])
def test_disconnect_cancels(front, coordinator, listener, tokenizer, first, stream):
    coordinator.silent = True
    coordinator.tokens = tokenizer.encode("Hello").ids if first else []
    connection = ask(listener, stream=stream)
    number = coordinator.expect("generate")["id"]
    with contextlib.ExitStack() as answer:
        if first and stream:
            answer.enter_context(connection.getresponse()).readline()
        connection.sock.shutdown(socket.SHUT_RDWR)
    connection.close()
    assert coordinator.expect("cancel", timeout_s=1.0)["id"] == number


def test_a_client_that_leaves_cancels_a_load_that_waits(front, coordinator, listener):
    coordinator.silent = True
    connection = ask(listener, prompt="")
    number = coordinator.expect("load")["id"]
    connection.sock.shutdown(socket.SHUT_RDWR)
    connection.close()
    assert coordinator.expect("cancel", timeout_s=1.0)["id"] == number


def test_a_client_that_leaves_cancels_its_embeddings(front, coordinator, listener):
    coordinator.silent = True
    connection = connect(listener)
    connection.request("POST", "/api/embed", json.dumps({"model": "demo", "input": ["Hello", "world"]}))
    number = coordinator.expect("embed")["id"]
    connection.sock.shutdown(socket.SHUT_RDWR)
    connection.close()
    assert coordinator.expect("cancel", timeout_s=1.0)["id"] == number


def test_http_errors_over_the_wire(front, coordinator, listener):
    coordinator.error = ("busy", "")
    connection = ask(listener)
    response = connection.getresponse()
    assert response.status == 503
    assert json.load(response) == {"error": "server busy, please try again.  maximum pending requests exceeded"}
    connection.close()


RAW_REQUESTS = {
    b"POST /api/show HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n": b"413",
    b"POST /api/show HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n": b"400",
    b"POST /api/show HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx": b"400",
    b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n": b"400",
    b"POST /api/show HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n": b"400",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n": b"40",
    b"GET / HTTP/1.1\r\n\r\n": b"40",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 1_000_000 + b"\r\n\r\n": b"4",
    b"GET /" + b"x" * 1_000_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n": b"4",
    b"nonsense\r\n\r\n": b"400",
}  # fmt: skip


@pytest.mark.parametrize("number", range(len(RAW_REQUESTS)))
def test_raw_requests(front, listener, number):
    request, status = list(RAW_REQUESTS.items())[number]
    with socket.create_connection(listener.getsockname(), timeout=5) as client:
        with contextlib.suppress(OSError):  # refused before it was all sent
            client.sendall(request)
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(65536).split(b" ")[1].startswith(status)
    wait_until_alive(listener)


def test_chunked_bodies_count_against_the_limit(front, coordinator, listener):
    connection = connect(listener)
    chunks = (b" " * (1 << 20) for _ in range(40))
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        connection.request("POST", "/api/show", chunks, encode_chunked=True, headers={"Transfer-Encoding": "chunked"})
    with contextlib.suppress(ConnectionResetError), connection.getresponse() as response:
        assert response.status == 413
    connection.close()
    body = (part for part in (b'{"model":', b'"demo"}'))
    connection.request("POST", "/api/show", body, encode_chunked=True, headers={"Transfer-Encoding": "chunked"})
    response = connection.getresponse()
    assert (response.status, response.read()[:12]) == (200, b'{"modelfile"')
    connection.close()


@pytest.mark.parametrize("busy", [False, True])
def test_sigterm_ends_it_promptly(front, coordinator, listener, busy):
    coordinator.silent = True
    connection = ask(listener)
    coordinator.expect("generate")
    if not busy:
        connection.sock.close()
        coordinator.expect("cancel")
    front.terminate()
    front.wait(5)
    assert process_group(front.pid) == []
    connection.close()


def test_other_signals_are_ignored_and_nothing_is_written(front, listener, tmp_path):
    group = process_group(front.pid)
    assert len(group) == 3  # the third makes tokenizers
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR2):
        for pid in group:
            os.kill(pid, number)
    time.sleep(0.3)
    wait_until_alive(listener)
    assert sorted(process_group(front.pid)) == sorted(group)
    assert list(tmp_path.rglob("*")) == []


def test_it_dies_with_its_parent(coordinator, listener, models_folder, tmp_path):
    text = arguments(listener, coordinator.address, models_folder, "PARENT")
    with start([sys.executable, "-c", PARENT, text, str(listener.fileno())], listener, tmp_path) as parent:
        wait_until_alive(listener)
        assert len(process_group(parent.pid)) == 4
        parent.kill()
        parent.wait(5)
        deadline = time.monotonic() + 2
        while process_group(parent.pid) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert process_group(parent.pid) == []


def test_it_refuses_a_wrong_parent(coordinator, listener, models_folder, tmp_path):
    text = arguments(listener, coordinator.address, models_folder, 1)
    with start([*MODULE, text], listener, tmp_path) as process:
        assert process.wait(10) == 1


def test_it_imports_neither_torch_nor_mpi():
    code = "import sys, ollampi.api.front; print([m for m in ('torch', 'mpi4py', 'numpy') if m in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    assert subprocess.check_output([sys.executable, "-c", code], env=environment, text=True).strip() == "[]"


@pytest.mark.parametrize(
    ("target", "status"),
    [("http://evil.example/api/version", 403), ("http://localhost/api/version", 200), ("//evil.example/", 404)],
)
def test_a_whole_url_as_target(front, listener, target, status):
    with socket.create_connection(listener.getsockname(), 10) as client:
        client.sendall(f"GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        head = b"".join(iter(lambda: client.recv(4096), b""))
    assert int(head.split()[1]) == status
