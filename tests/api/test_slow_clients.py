"""Let clients be silent, slow and many: nobody else waits for them, and they go after a while."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.fronts import arguments, ask, connect, process_group, running_front, wait_until_alive

from ollampi.api.front import FrontConfig, gunicorn_options, raise_descriptor_limit

IMPATIENT = """
import sys
from ollampi.api import front, worker
worker.HEAD_TIMEOUT_S = worker.BODY_TIMEOUT_S = worker.SEND_TIMEOUT_S = 0.5
worker.REQUEST_TIMEOUT_S = 1.5
front.main(sys.argv[1:])
"""
BODY = b'{"model":"demo"}'
POST = b"POST /api/show HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"


@pytest.fixture
def front(coordinator, listener, models_folder, tmp_path) -> Iterator[subprocess.Popen[bytes]]:
    """Return a running server process that waits half a second for clients; it must have logged nothing."""
    text = arguments(listener, coordinator.address, models_folder, os.getpid())
    with running_front(listener, text, tmp_path, [sys.executable, "-c", IMPATIENT]) as process:
        yield process
        process.terminate()
        assert process.stderr.read() == b""


RUNNING = b"Ollama is running"


@contextlib.contextmanager
def clients(listener: socket.socket, count: int, sent: bytes = b"") -> Iterator[list[socket.socket]]:
    """Open connections on which `sent` is all that ever comes."""
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(socket.create_connection(listener.getsockname(), 5)) for _ in range(count)]
        for client in opened:
            client.sendall(sent)
        yield opened


def everything(client: socket.socket) -> bytes:
    """Return what the server sends up to the end of the connection."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while part := client.recv(65536):
            received += part
    return received


def answer_within(listener: socket.socket, timeout_s: float) -> bytes:
    """Return what the server says of itself; raise TimeoutError where that takes longer."""
    with contextlib.closing(connect(listener)) as connection:
        connection.timeout = timeout_s
        connection.request("GET", "/")
        return connection.getresponse().read()


def test_silent_connections_hold_no_thread(front, listener):
    with clients(listener, 64):
        assert answer_within(listener, 3) == RUNNING


def test_clients_that_stay_after_a_last_answer_hold_nobody_up(front, listener):
    with clients(listener, 6, b"nonsense\r\n\r\n") as opened:
        for client in opened:
            assert client.recv(65536)
        assert answer_within(listener, 3) == RUNNING


@pytest.mark.parametrize("sent", [b"G", b"POST /api/show HTTP/1.1\r\nHost: localhost\r\nContent-"])
def test_slow_headers(front, listener, sent):
    with clients(listener, 16, sent) as opened:
        assert answer_within(listener, 3) == RUNNING
        assert [everything(client) for client in opened] == [b""] * 16


def test_headers_that_come_byte_by_byte(front, listener):
    with clients(listener, 1, b"GET / HTTP/1.1\r\nX: ") as (client,):
        started = time.monotonic()
        with contextlib.suppress(OSError):  # the connection ends at last
            while time.monotonic() < started + 5:
                client.sendall(b"x")
                time.sleep(0.05)
        assert time.monotonic() < started + 5


def test_slow_bodies(front, listener):
    with clients(listener, 8, POST % 100 + BODY) as opened:
        assert answer_within(listener, 5) == RUNNING
        for client in opened:
            head, _, body = everything(client).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 400 ")
            assert b"\r\nConnection: close\r\n" in head
            assert json.loads(body) == {"error": "the request body is broken or ends too early"}


def test_a_body_that_keeps_coming_is_read(front, listener):
    with clients(listener, 1, POST % len(BODY)) as (client,):
        for byte in BODY:
            time.sleep(0.06)
            client.sendall(bytes([byte]))
        assert client.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_idle_connections_are_kept(front, listener):
    connection = connect(listener)
    for _ in range(2):
        connection.request("GET", "/")
        connection.getresponse().read()
        client = connection.sock
        time.sleep(1.2)
    assert connection.sock is client
    connection.close()


def small_reader(listener: socket.socket) -> socket.socket:
    """Return a connection with little room for what it does not read, on which an answer was asked for."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.settimeout(10)
    client.connect(listener.getsockname())
    body = b'{"model":"demo","prompt":"x"}'
    client.sendall((POST % len(body)).replace(b"show", b"generate") + body)
    return client


def test_a_client_that_stops_reading_is_cut_off(front, coordinator, listener, tokenizer):
    coordinator.silent = True
    coordinator.tokens = tokenizer.encode("Hello, world" * 100).ids
    with small_reader(listener):
        number = coordinator.expect("generate")["id"]
        assert coordinator.expect("cancel")["id"] == number


def test_a_slow_reader_is_served(front, coordinator, listener, tokenizer):
    coordinator.tokens = tokenizer.encode("Hello, world" * 20).ids
    with small_reader(listener) as client:
        coordinator.expect("generate")
        received = b""
        while b'"done":true' not in received:
            part = client.recv(1024)
            assert part
            received += part
            time.sleep(0.04)


def test_more_connections_than_descriptors(coordinator, listener, models_folder, tmp_path):
    def limit() -> None:
        """Leave the process few descriptors."""
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, 128))

    text = arguments(listener, coordinator.address, models_folder, os.getpid())
    with running_front(listener, text, tmp_path, preexec_fn=limit) as process:
        group = process_group(process.pid)
        for pid in group:
            assert "128" in next(
                line for line in Path(f"/proc/{pid}/limits").read_text().splitlines() if "files" in line
            )
        with clients(listener, 150):
            time.sleep(1)
            assert len(os.listdir(f"/proc/{sorted(group)[1]}/fd")) < 120
        wait_until_alive(listener)
        assert process_group(process.pid) == group
        process.terminate()
        assert process.stderr.read() == b""


def test_running_out_of_descriptors_ends_nothing(coordinator, listener, models_folder, tmp_path):
    program = "import sys; from ollampi.api import front; front._OWN_DESCRIPTORS = -10_000; front.main(sys.argv[1:])"

    def limit() -> None:
        """Leave the process few descriptors."""
        resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))

    text = arguments(listener, coordinator.address, models_folder, os.getpid())
    with running_front(listener, text, tmp_path, [sys.executable, "-c", program], preexec_fn=limit) as process:
        coordinator.silent = True
        stream = ask(listener)
        coordinator.expect("generate")
        group = process_group(process.pid)
        with clients(listener, 150):
            time.sleep(1)
        wait_until_alive(listener)
        assert process_group(process.pid) == group
        assert coordinator.messages.empty()  # the stream goes on
        stream.close()
        process.terminate()
        assert b"cannot accept connections: [Errno 24]" in process.stderr.read()


@pytest.mark.parametrize(
    ("soft", "hard", "most"),
    [(1024, 4096, 4096), (1024, -1, 65536), (-1, -1, 65536), (90, 90, 90), (10**5, 10**6, 65536)],
)
def test_descriptor_limit(monkeypatch, soft, hard, most):
    changes = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: changes.append(limits))
    assert raise_descriptor_limit() == most
    assert changes == ([(most, hard)] if 0 < soft < most else [])
    config = FrontConfig(listen_fd=3, engine="", parent=1, threads=8)
    assert 0 < gunicorn_options(config, most)["worker_connections"] < most


def test_a_body_that_drips_ends_all_the_same(front, listener):
    with clients(listener, 1, POST % 1000 + b"{") as (client,):
        client.settimeout(0.1)
        began, received = time.monotonic(), b""
        while not received and time.monotonic() - began < 10:
            with contextlib.suppress(TimeoutError):
                client.sendall(b" ")
                received = client.recv(65536)
        assert received.startswith(b"HTTP/1.1 400 ")
    assert answer_within(listener, 3) == RUNNING
