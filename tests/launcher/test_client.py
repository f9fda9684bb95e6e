"""Test the HTTP client against a little server, and the words against tables."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from ollampi.launcher.client import (
    ApiError,
    Client,
    UnreachableError,
    human_duration,
    human_size,
    human_time,
    parse_host,
    processor,
    show_text,
    table,
    timings,
)
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
        status, pieces = self.server.answers[self.path]
        self.send_response(status)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            for piece in pieces:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                self.wfile.flush()
            self.wfile.write(b"0\r\n\r\n")
        except OSError:
            self.server.hung_up.set()
            self.close_connection = True

    do_GET = do_POST = _answer


class FakeApi(ThreadingHTTPServer):
    """Play Ollama's API with canned answers."""

    daemon_threads = False  # joined by server_close, so that no test leaves a thread behind

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, tuple[int, Any]] = {}
        self.requests: list[tuple[str, str, Any]] = []
        self.hung_up = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}"

    def answer(self, path: str, *objects: object, status: int = 200) -> None:
        """Answer path with these objects, one per line."""
        self.answers[path] = status, [json.dumps(each).encode() + b"\n" for each in objects]


@pytest.fixture
def api() -> Iterator[FakeApi]:
    server = FakeApi()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


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
    assert Client(parse_host(f"{api.url}/ai/")).get("/api/tags") == {"models": []}


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
        "start one with `ollampi serve`, or name another with --host or OLLAMA_HOST"
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


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("", "http://127.0.0.1:11434"),
        ("node7", "http://node7:11434"),
        ("node7:8000", "http://node7:8000"),
        (":8000", "http://127.0.0.1:8000"),
        ("0.0.0.0", "http://127.0.0.1:11434"),
        ("0.0.0.0:80", "http://127.0.0.1:80"),
        (' "10.0.0.1:1" ', "http://10.0.0.1:1"),
        ("http://node7:8000", "http://node7:8000"),
        ("http://node7:8000/", "http://node7:8000"),
        ("http://node7", "http://node7:80"),
        ("https://node7", "https://node7:443"),
        ("https://node7/models/", "https://node7:443/models"),
        ("::1", "http://[::1]:11434"),
        ("[::1]:8000", "http://[::1]:8000"),
        ("[::]", "http://[::1]:11434"),
        ("::", "http://[::1]:11434"),
    ],
)
def test_parse_host(text: str, url: str) -> None:
    assert parse_host(text) == url


@pytest.mark.parametrize("text", ["ftp://x", "://x", "x:port", "x:99999", "[::1"])
def test_parse_host_refuses(text: str) -> None:
    with pytest.raises(ConfigError, match="http"):
        parse_host(text)


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 KB"),
        (1500, "1.5 KB"),
        (11_354_112, "11 MB"),
        (986_061_892, "986 MB"),
        (4_700_000_000, "4.7 GB"),
        (42_520_413_916, "42 GB"),
        (1_500_000_000_000, "1.5 TB"),
        (2_000_000_000_000_000, "2000 TB"),
    ],
)
def test_human_size(size_bytes: int, text: str) -> None:
    assert human_size(size_bytes) == text


@pytest.mark.parametrize(
    ("stamp", "text"),
    [
        ("2026-01-02T03:04:05Z", "Less than a second ago"),
        ("2026-01-02T03:04:04Z", "1 second ago"),
        ("2026-01-02T03:03:20.123456789Z", "44 seconds ago"),
        ("2026-01-02T03:03:00Z", "About a minute ago"),
        ("2026-01-02T02:34:05Z", "30 minutes ago"),
        ("2026-01-02T02:04:05Z", "About an hour ago"),
        ("2026-01-02T03:04:05+02:00", "2 hours ago"),
        ("2025-12-30T03:04:05Z", "3 days ago"),
        ("2025-12-12T03:04:05Z", "3 weeks ago"),
        ("2025-09-30T03:04:05Z", "3 months ago"),
        ("2022-09-30T03:04:05Z", "3 years ago"),
        ("2026-01-02T03:09:04Z", "4 minutes from now"),
        ("2318-04-13T02:51:20.5Z", "Forever"),
        ("0001-01-01T00:00:00Z", "Never"),
        ("", "Never"),
    ],
)
def test_human_time(stamp: str, text: str) -> None:
    assert human_time(stamp, datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)) == text


@pytest.mark.parametrize(
    ("duration_ns", "text"),
    [
        (0, "0s"),
        (850, "850ns"),
        (1_500, "1.5µs"),
        (210_000_000, "210ms"),
        (48_123_456, "48.123456ms"),
        (1_500_000_000, "1.5s"),
        (10**9, "1s"),
        (123_500_000_000, "2m3.5s"),
        (3_600_000_000_000, "1h0m0s"),
        (3_723_000_000_000, "1h2m3s"),
    ],
)
def test_human_duration(duration_ns: int, text: str) -> None:
    assert human_duration(duration_ns) == text


@pytest.mark.parametrize(
    ("size", "size_vram", "text"),
    [
        (100, 0, "100% CPU"),
        (100, 100, "100% GPU"),
        (100, 52, "48%/52% CPU/GPU"),
        (100, 120, "Unknown"),
        (0, 0, "100% CPU"),
    ],
)
def test_processor(size: int, size_vram: int, text: str) -> None:
    assert processor({"size": size, "size_vram": size_vram}) == text


def test_processor_of_a_server_that_leaves_size_vram_out() -> None:
    assert processor({"size": 7}) == "100% CPU"


def test_table_aligns_without_blanks_at_the_end() -> None:
    assert table([("NAME", "SIZE"), ("a-longer-name", "1 B")]) == "NAME             SIZE\na-longer-name    1 B\n"


def test_timings_match_the_walk_through() -> None:
    final = {
        "total_duration": 210_000_000,
        "load_duration": 1_000_000,
        "prompt_eval_count": 9,
        "prompt_eval_duration": 50_000_000,
        "eval_count": 2,
        "eval_duration": 150_000_000,
    }
    assert timings(final) == (
        "total duration:       210ms\n"
        "load duration:        1ms\n"
        "prompt eval count:    9 token(s)\n"
        "prompt eval duration: 50ms\n"
        "prompt eval rate:     180.00 tokens/s\n"
        "eval count:           2 token(s)\n"
        "eval duration:        150ms\n"
        "eval rate:            13.33 tokens/s\n"
    )


def test_timings_leave_out_what_the_server_left_out() -> None:
    assert timings({"eval_count": 2}) == "eval count:           2 token(s)\n"


SHOW = {
    "license": "MIT License\n\nCopyright someone\n\nPermission is granted",
    "parameters": 'stop                           "<|end|>"\ntemperature                    0.5',
    "system": "Be brief.",
    "details": {"family": "llama", "parameter_size": "2.7M", "quantization_level": "F32"},
    "model_info": {
        "general.architecture": "llama",
        "llama.context_length": 512,
        "llama.embedding_length": 192,
        "tokenizer.ggml.tokens": ["a-rather-long-token"] * 9,
    },
    "capabilities": ["completion", "tools"],
    "tensors": [{"name": "token_embd.weight", "type": "F32", "shape": [192, 2048]}],
}


def test_show_text_has_the_sections() -> None:
    assert show_text(SHOW) == (
        "  Model\n"
        "    architecture        llama\n"
        "    parameters          2.7M\n"
        "    context length      512\n"
        "    embedding length    192\n"
        "    quantization        F32\n"
        "\n  Capabilities\n    completion\n    tools\n"
        '\n  Parameters\n    stop           "<|end|>"\n    temperature    0.5\n'
        "\n  System\n    Be brief.\n"
        "\n  License\n    MIT License\n    Copyright someone\n    ...\n"
    )


def test_show_text_verbose_has_every_fact() -> None:
    text = show_text(SHOW, verbose=True)
    assert "\n  Metadata\n" in text
    assert "    llama.context_length      512\n" in text
    assert "    token_embd.weight    F32    [192, 2048]\n" in text
    assert max(map(len, text.splitlines())) < 120


def test_show_text_of_a_model_without_facts() -> None:
    assert show_text({"license": ["one", "two"]}) == "  License\n    one\n    two\n"
