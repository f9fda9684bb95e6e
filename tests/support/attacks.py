"""Attack a real server and see whether it is what it was before."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from flask import Flask

from ollampi.api.app import create_app
from ollampi.api.engine_client import Engine
from ollampi.api.settings import Settings
from ollampi.api.store.catalog import Store
from support.servers import DEMO, Server

GROWTH_KIB = 64 << 10
ENDLESS_S = 120.0
PUBLIC = {"/", "/api/version", "/api/openapi.json", "/api/docs", "/livez", "/readyz"}
TOOLS = "{% if tools %}{{ tools | tojson }}{% endif %}"


@dataclass
class Attacked:
    """A server under attack, with what it was like before; store is its model store."""

    server: Server
    ranks: list[int]
    resident_kib: int
    store: Path
    answer: str
    before: dict[str, int] = field(default_factory=dict)

    def post(self, path: str, **body: Any) -> tuple[int, Any]:
        """Return status and answer of a request that does not stream; `model` is the demo model unless given."""
        return self.server.request("POST", path, {"model": "demo", "stream": False, **body})

    def upload(self, data: bytes) -> str:
        """Send a blob; return its digest."""
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        assert self.server.send("POST", f"/api/blobs/{digest}", {}, data) in (200, 201)
        return digest

    def pull(self, name: str, **body: Any) -> list[dict[str, Any]]:
        """Return the lines of a pull."""
        status, text = self.server.request("POST", "/api/pull", {"model": name, "insecure": True, **body})
        assert status == 200 or isinstance(text, dict), text
        return [text] if isinstance(text, dict) else [json.loads(line) for line in text.splitlines()]

    def raw(self, data: bytes, timeout_s: float = 10) -> bytes:
        """Return what the server answers to bytes on a connection of their own, until it ends that or falls silent.

        Ask for `Connection: close` where silence is not to be waited for. Raise AssertionError where there is no end.
        """
        end = time.monotonic() + ENDLESS_S
        with socket.create_connection(("127.0.0.1", self.server.port), timeout_s) as client:
            received = b""
            with contextlib.suppress(ConnectionError):  # it need not read all before it answers
                client.sendall(data)
            with contextlib.suppress(TimeoutError, ConnectionError):
                while part := client.recv(65536):
                    received += part
                    assert time.monotonic() < end, f"an answer went on for {ENDLESS_S} s: {received[-200:]!r}"
            return received

    def holds(self) -> dict[str, int]:
        """Return the memory of each process of the server in KiB, by its number and what it runs."""
        found = {}
        for pid in self.server.processes():
            try:
                lines = Path(f"/proc/{pid}/status").read_text().splitlines()
                program = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[1:3]
            except OSError:  # it has just ended
                continue
            kib = next((int(line.split()[1]) for line in lines if line.startswith("RssAnon:")), 0)
            found[f"{pid} {b' '.join(program).decode()}"] = kib
        return found

    def resident(self) -> int:
        """Return the memory of the ranks, the HTTP process and their helpers, in KiB."""
        return sum(self.holds().values())

    def check(self) -> None:
        """Assert that the server is what it was."""
        assert self.server.ranks() == self.ranks
        assert self.server.generate("import os\n", 8) == self.answer
        end = time.monotonic() + 5  # what a killed helper process held comes back with a moment's delay
        while self.resident() > self.resident_kib + GROWTH_KIB and time.monotonic() < end:
            time.sleep(0.1)
        assert self.resident() <= self.resident_kib + GROWTH_KIB, (self.resident_kib, self.before, self.holds())


def application() -> Flask:
    """Return an application to look at; it serves nobody."""
    return create_app(cast(Engine, None), Store([]), Settings())


def operations() -> list[tuple[str, str]]:
    """Return method and path of every route, its variables filled in."""
    return [(route.method, re.sub(r"<[^>]*>", "x", route.path)) for route in application().config["ROUTES"].values()]


def with_template(parent: Path, name: str, extra: str) -> Path:
    """Write the demo model with more in its chat template into `parent`; return the folder."""
    folder = parent / name
    shutil.copytree(DEMO, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["chat_template"] = extra + config["chat_template"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder
