"""A server that gives canned answers, for the command line."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeVar

from click.testing import CliRunner, Result

from ollampi.launcher.cli import main

S = TypeVar("S", bound=ThreadingHTTPServer)


class Handler(BaseHTTPRequestHandler):
    """Answer a path with the server's canned lines, or 404 as Ollama does for a model it has not."""

    server: FakeApi

    def log_message(self, *args: object) -> None:
        """Stay silent."""

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        told = json.loads(body) if body[:1] == b"{" else body or None
        self.server.requests.append((self.path, told))
        self.server.methods.append(self.command)
        if self.server.blobs and self.path.startswith("/api/blobs/") and self.command == "POST":
            self.server.answers[self.path] = []
        there = self.path in self.server.answers and self.path not in self.server.missing_once
        if self.path in self.server.missing_once:
            self.server.missing_once.remove(self.path)
        missing = [{"error": f"model '{told.get('model') if isinstance(told, dict) else ''}' not found"}]
        self.send_response(200 if there else 404)
        self.end_headers()
        try:
            for line in self.server.answers[self.path] if there else missing:
                self.wfile.write(json.dumps(line).encode() + b"\n")
                self.wfile.flush()
        except OSError:
            self.server.hung_up.set()

    do_GET = do_POST = do_DELETE = do_HEAD = _answer


class FakeApi(ThreadingHTTPServer):
    """Play the server; `run` calls the command line on it."""

    daemon_threads = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, Any] = {}
        self.blobs = False  # whether a blob can be put
        self.missing_once: list[str] = []
        self.requests: list[tuple[str, Any]] = []
        self.methods: list[str] = []
        self.hung_up = threading.Event()
        self.host = f"127.0.0.1:{self.server_port}"

    def run(self, *args: str, stdin: str = "") -> Result:
        """Run a command against this server."""
        return CliRunner().invoke(main, args, input=stdin, env={"OLLAMA_HOST": self.host})


@contextmanager
def serving(server: S) -> Iterator[S]:
    """Run a server in a thread until the block ends; no thread of it is left behind."""
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Become(Exception):
    """Stand for the program that exec turns this one into."""
