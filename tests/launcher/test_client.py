"""Test the HTTP client against a little server."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from support.fake_api import serving

from ollampi.launcher.client import ApiError, Client, UnreachableError
from ollampi.mpiruntime.errors import ConfigError


class Handler(BaseHTTPRequestHandler):
    """Answer each path with what the server's `answers` holds: a status and the pieces of the body."""

    protocol_version = "HTTP/1.1"
    server: "FakeApi"

    def log_message(self, *args: object) -> None:
        """Stay silent."""

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.requests.append((self.command, self.path, json.loads(body) if body else None))
        self.server.keys.append(self.headers.get("Authorization"))
        status, pieces = self.server.answers[self.path]
        self.send_response(status)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        if self.command == "HEAD":
            return
        try:
            for piece in pieces:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                self.wfile.flush()
            self.wfile.write(b"0\r\n\r\n")
        except OSError:
            self.server.hung_up.set()
            self.close_connection = True

    do_GET = do_POST = do_DELETE = do_HEAD = _answer


class FakeApi(ThreadingHTTPServer):
    """Play Ollama's API with canned answers."""

    daemon_threads = False  # joined by server_close, so that no test leaves a thread behind

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, tuple[int, Any]] = {}
        self.requests: list[tuple[str, str, Any]] = []
        self.keys: list[str | None] = []
        self.hung_up = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}"

    def answer(self, path: str, *objects: object, status: int = 200) -> None:
        """Answer path with these objects, one per line."""
        self.answers[path] = status, [json.dumps(each).encode() + b"\n" for each in objects]


@pytest.fixture
def api() -> Iterator[FakeApi]:
    with serving(FakeApi()) as server:
        yield server


def test_get_returns_the_object(api: FakeApi) -> None:
    api.answer("/api/version", {"version": "0.1.0"})
    assert Client(api.url).get("/api/version") == {"version": "0.1.0"}
    assert api.requests == [("GET", "/api/version", None)]


def test_post_sends_json_and_asks_for_one_object(api: FakeApi) -> None:
    api.answer("/api/show", {"details": {"family": "llama"}})
    assert Client(api.url).post("/api/show", {"model": "é"}) == {"details": {"family": "llama"}}
    assert api.requests == [("POST", "/api/show", {"model": "é", "stream": False})]


def test_a_path_in_the_url_goes_in_front(api: FakeApi) -> None:
    api.answer("/ai/api/tags", {"models": []})
    assert Client(f"{api.url}/ai").get("/api/tags") == {"models": []}


def test_stream_yields_every_line(api: FakeApi) -> None:
    lines = [{"response": "a"}, {"response": "b"}, {"response": "", "done": True}]
    api.answer("/api/generate", *lines)
    assert list(Client(api.url).stream("/api/generate", {"model": "m"})) == lines
    assert api.requests == [("POST", "/api/generate", {"model": "m", "stream": True})]


def test_stream_puts_torn_lines_together(api: FakeApi) -> None:
    api.answers["/api/chat"] = 200, [b'{"message":{"con', b'tent":"x"}}\n{"do', b'ne":true}\n']
    assert list(Client(api.url).stream("/api/chat", {})) == [{"message": {"content": "x"}}, {"done": True}]


def test_stream_yields_before_the_answer_is_complete(api: FakeApi) -> None:
    go_on = threading.Event()

    def pieces() -> Iterator[bytes]:
        yield b'{"response":"first"}\n'
        assert go_on.wait(10)
        yield b'{"done":true}\n'

    api.answers["/api/generate"] = 200, pieces()
    stream = Client(api.url).stream("/api/generate", {})
    assert next(stream) == {"response": "first"}
    go_on.set()
    assert list(stream) == [{"done": True}]


def test_closing_a_stream_hangs_up(api: FakeApi) -> None:
    def endless() -> Iterator[bytes]:
        while not api.hung_up.is_set():
            time.sleep(0.001)
            yield b'{"response":"x"}\n'

    api.answers["/api/generate"] = 200, endless()
    with closing(Client(api.url).stream("/api/generate", {})) as stream:
        next(stream)
    assert api.hung_up.wait(10)


@pytest.mark.parametrize(
    ("status", "body", "text"),
    [
        (404, b'{"error":"model \'x\' not found"}', "model 'x' not found"),
        (503, b'{"error":"server busy, please try again."}', "server busy, please try again."),
        (404, b"404 page not found", "404 page not found"),
        (500, b"[]", "[]"),
        (500, b'{"error":"a\\u001b[2J\\nb"}', "a\N{REPLACEMENT CHARACTER}[2J\nb"),
        (502, b"", "HTTP status 502"),
    ],
)
def test_an_error_status_raises_its_text(api: FakeApi, status: int, body: bytes, text: str) -> None:
    api.answers["/api/chat"] = status, [body] if body else []
    for call in (lambda c: c.post("/api/chat", {}), lambda c: list(c.stream("/api/chat", {}))):
        with pytest.raises(ApiError) as caught:
            call(Client(api.url))
        assert (caught.value.status, str(caught.value)) == (status, text)


def test_an_error_in_the_middle_of_a_stream_raises(api: FakeApi) -> None:
    api.answer("/api/chat", {"message": {"content": "a"}}, {"error": "a rank failed"})
    stream = Client(api.url).stream("/api/chat", {})
    assert next(stream) == {"message": {"content": "a"}}
    with pytest.raises(ApiError, match="a rank failed") as caught:
        next(stream)
    assert caught.value.status == 200


def test_a_stream_without_its_end_raises(api: FakeApi) -> None:
    api.answer("/api/chat", {"message": {"content": "a"}, "done": False})
    with pytest.raises(UnreachableError, match="hung up before the answer was complete"):
        list(Client(api.url).stream("/api/chat", {}))


def test_something_that_is_no_api_raises(api: FakeApi) -> None:
    api.answers["/api/tags"] = 200, [b"<html>hello</html>"]
    with pytest.raises(ApiError, match="is it an Ollama server"):
        Client(api.url).get("/api/tags")


def test_nobody_there_names_the_url_and_the_remedy() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound but not listening: nobody else can take the port, connecting is refused
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(UnreachableError) as caught:
            Client(url).get("/api/tags")
    assert str(caught.value) == (
        f"no server answers at {url} (connection refused): "
        "start one with `make serve` or `ollampi launch -n 4`, or name another with --host or OLLAMA_HOST"
    )


def test_a_server_that_hangs_up_without_an_answer_is_unreachable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            connection, _ = listener.accept()
            connection.close()

        thread = threading.Thread(target=accept)
        thread.start()
        with pytest.raises(UnreachableError, match="no server answers at"):
            Client(f"http://127.0.0.1:{listener.getsockname()[1]}").get("/api/tags")
        thread.join()


def test_a_key_goes_along_as_a_bearer_token(api: FakeApi) -> None:
    api.answer("/api/tags", {"models": []})
    Client(api.url, "secret").get("/api/tags")
    Client(api.url).get("/api/tags")
    assert api.keys == ["Bearer secret", None]


def test_a_key_that_no_header_can_carry_is_refused_without_showing_it() -> None:
    with pytest.raises(ConfigError, match="OLLAMA_API_KEY") as caught:
        Client("http://x", "secret\nX-More: 1")
    assert "secret" not in str(caught.value)


def test_a_command_needs_no_answer(api: FakeApi) -> None:
    api.answers["/api/delete"] = 200, []
    Client(api.url).command("DELETE", "/api/delete", {"model": "m"})
    assert api.requests == [("DELETE", "/api/delete", {"model": "m"})]


@pytest.mark.parametrize(("status", "there"), [(200, True), (404, False)])
def test_has(api: FakeApi, status: int, there: bool) -> None:
    api.answers["/api/blobs/x"] = status, []
    assert Client(api.url).has("/api/blobs/x") is there
    assert api.requests == [("HEAD", "/api/blobs/x", None)]


def test_has_of_a_path_that_the_server_refuses(api: FakeApi) -> None:
    api.answers["/api/blobs/x"] = 400, []
    with pytest.raises(ApiError, match="HTTP status 400"):
        Client(api.url).has("/api/blobs/x")


def test_upload_sends_the_pieces_under_their_size(api: FakeApi) -> None:
    api.answers["/api/blobs/x"] = 201, []
    Client(api.url, "k").upload("/api/blobs/x", iter([b"[1,", b"2]"]), 5)
    assert api.requests == [("POST", "/api/blobs/x", [1, 2])]
    assert api.keys == ["Bearer k"]


def test_upload_tells_what_a_server_says_that_takes_no_more() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def refuse() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1 << 16)
                connection.sendall(
                    b'HTTP/1.1 403 Forbidden\r\nConnection: close\r\n\r\n{"error":"the store is read-only"}'
                )
                connection.shutdown(socket.SHUT_RD)
                while connection.recv(1 << 20):
                    pass

        thread = threading.Thread(target=refuse)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(ApiError, match="the store is read-only"):
            Client(url).upload("/api/blobs/x", (bytes(1 << 20) for _ in range(64)), 64 << 20)
        thread.join()


def test_the_status_success_ends_a_stream(api: FakeApi) -> None:
    lines = [{"status": "pulling manifest"}, {"status": "success"}]
    api.answer("/api/pull", *lines)
    assert list(Client(api.url).stream("/api/pull", {"model": "m"})) == lines


def test_an_impatient_client_gives_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(UnreachableError, match="timed out"):
            Client(url, "k").impatient(0.01).get("/api/tags")
