"""Send what is hardly HTTP or JSON over a real socket: a JSON error comes back, and the server goes on."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Iterator

import pytest
from support.fronts import arguments, running_front, wait_until_alive

HEAD = b"POST /api/show HTTP/1.1\r\nHost: localhost\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
BROKEN = "the request body is broken or ends too early"


def sized(body: bytes, length: int | None = None) -> bytes:
    """Return a request with a body."""
    return HEAD + b"Content-Length: %d\r\n\r\n" % (len(body) if length is None else length) + body


@pytest.fixture(scope="module")
def front(tmp_path_factory, models_folder) -> Iterator[tuple[socket.socket, subprocess.Popen[bytes]]]:
    """Return the listener of a running server process without an engine, and the process."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        text = arguments(listener, "unix:@ollampi-nobody-is-here", models_folder, os.getpid())
        with running_front(listener, text, tmp_path_factory.mktemp("front")) as process:
            yield listener, process


def exchange(listener: socket.socket, request: bytes, half_close: bool = False) -> tuple[bytes, bytes]:
    """Return head and body of all that is answered until the server ends the connection."""
    with socket.create_connection(listener.getsockname(), 5) as client:
        client.sendall(request)
        if half_close:
            client.shutdown(socket.SHUT_WR)
        received = b""
        while part := client.recv(65536):
            received += part
    head, _, body = received.partition(b"\r\n\r\n")
    return head, body


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b'{"model":"\xed\xa0\x80"}', "json: byte 10 of the body is not UTF-8"),
        (b'{"model":"\xff"}', "json: byte 10 of the body is not UTF-8"),
        ('{"model":"demo"}'.encode("utf-16"), "json: byte 0 of the body is not UTF-8"),
        ('{"model":"demo"}'.encode("utf-16-le"), "json: "),
        ('{"model":"demo"}'.encode("utf-32"), "json: byte 0 of the body is not UTF-8"),
        ('{"model":"demo"}'.encode("utf-8-sig"), "json: "),
        (b'{"model":"demo"}\x00', "json: "),
    ],
)
def test_bodies_that_are_not_utf_8(client, body, text):
    response = client.post("/api/show", data=body)
    assert response.status_code == 400
    assert response.json["error"].startswith(text)


@pytest.mark.parametrize(
    "request_",
    [
        CHUNKED + b"zz\r\n{}\r\n0\r\n\r\n",
        CHUNKED + b"-1\r\n{}\r\n0\r\n\r\n",
        CHUNKED + b"2\r\n{}xx0\r\n\r\n",
        CHUNKED + b"2;\x00=\r\n{}\r\n0\r\n\r\n",
        CHUNKED + b"f" * 20_000,
        CHUNKED + b"5\r\n{}",
        CHUNKED + b"2\r\n{}\r\n",
        CHUNKED + b"2\r\n{}\r\n0\r\n",
        CHUNKED + b"2\r\n{}\r\n0\r\nBad Trailer\r\n\r\n",
        sized(b'{"model":"demo"}', 100),
        sized(b"", 100),
    ],
)
def test_broken_bodies(front, request_):
    listener, process = front
    head, body = exchange(listener, request_, half_close=True)
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"\r\nConnection: close" in head
    assert json.loads(body) == {"error": BROKEN}
    wait_until_alive(listener)
    assert process.poll() is None


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"get / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/9.9\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nBad Name: x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nX: \x00\r\n\r\n", 400),
        (b"GET /\xff HTTP/1.1\r\n\r\n", 400),
        (b"GET /" + b"x" * 10_000 + b" HTTP/1.1\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 10_000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\n" + b"X: x\r\n" * 200 + b"\r\n", 431),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: cake\r\n\r\n", 501),
        (b"POST / HTTP/1.1\r\nExpect: cake\r\n\r\n", 417),
        (HEAD + b"Content-Length: 99999999999\r\n\r\n{}", 413),
    ],
)
def test_refusals_are_json_and_end_the_connection(front, request_, status):
    listener, process = front
    head, body = exchange(listener, request_)
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert b"\r\nConnection: close" in head
    assert b"\r\nContent-Type: application/json; charset=utf-8" in head
    answer = json.loads(body)
    assert list(answer) == ["error"]
    assert 0 < len(answer["error"]) < 300
    wait_until_alive(listener)
    assert process.poll() is None


def test_what_follows_a_refused_body_is_no_request(front):
    listener, _ = front
    head, body = exchange(listener, sized(b" " * 40_000 + b"GET /api/version HTTP/1.1\r\n\r\n", 10**8))
    assert head.startswith(b"HTTP/1.1 413 ")
    assert b"HTTP/1.1" not in body


@pytest.mark.parametrize("name", ["SCRIPT_NAME", "SCRIPT-NAME", "PATH_INFO", "REMOTE_USER", "X-Forwarded-Proto", "X_Y"])
@pytest.mark.parametrize("value", ["/api", "https", "/nowhere"])
def test_no_header_moves_a_request(front, name, value):
    request = f"GET /api/version HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{name}: {value}\r\n\r\n"
    head, body = exchange(front[0], request.encode())
    assert head.startswith(b"HTTP/1.1 200 ")
    assert list(json.loads(body)) == ["version"]


def test_a_listener_in_the_place_of_stdin(models_folder, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        text = arguments(listener, "unix:@ollampi-nobody-is-here", models_folder, os.getpid(), listen_fd=0)
        with running_front(listener, text, tmp_path, stdin=listener.fileno()) as process:
            assert os.readlink(f"/proc/{process.pid}/fd/0") == os.devnull
            wait_until_alive(listener)


@pytest.mark.parametrize(
    ("escaped", "text"),
    [
        (r"\ud83d\ude42", "🙂"),
        (r"a\ud800b", "a\ufffdb"),
        (r"\udc00\ud800", "\ufffd\ufffd"),
        (r"\uD83D\uD83D\uDE42\uDE42", "\ufffd🙂\ufffd"),
        (r"\\ud800", r"\ud800"),
        (r"\\ud83d\ude42", "\\ud83d\ufffd"),
        (r"\\\ud83d\ude42", "\\🙂"),
        (r"\\\\\ud83d", "\\\\\ufffd"),
        (r"\ud83d\\ude42", "\ufffd\\ude42"),
        (r"\ud83d\n\"", '\ufffd\n"'),
        (r"\ud7ff\ue000", "\ud7ff\ue000"),
    ],
)
def test_half_surrogate_pairs_become_replacement_characters(client, engine, escaped, text):
    body = f'{{"model":"demo","prompt":"{escaped}","raw":true,"stream":false}}'
    assert client.post("/api/generate", data=body).status_code == 200
    assert engine.requests[0].prompt == engine.tokenizer.encode(text).ids
    body = f'{{"model":"{escaped}","think":"{escaped}","{escaped}":[{{"{escaped}":0}}]}}'
    assert client.post("/api/generate", data=body).status_code == 400
