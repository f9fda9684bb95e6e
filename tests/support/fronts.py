"""Start the real HTTP process on an inherited socket, with whatever coordinator, and talk to it."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).parents[2] / "src"
MODULE = [sys.executable, "-m", "ollampi.api.front"]


def arguments(listener: socket.socket, address: str, models: Path, parent: object, **more: Any) -> str:
    """Return the JSON argument of the server process."""
    config = {"listen_fd": listener.fileno(), "engine": address, "parent": parent, "threads": 8}
    return json.dumps(config | {"models": [str(models)]} | more).replace('"PARENT"', "PARENT")


def start(command: list[str], listener: socket.socket, folder: Path, **more: Any) -> subprocess.Popen[bytes]:
    """Start a process with the listening socket, in its own session and an empty folder."""
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "HOME": str(folder), "XDG_RUNTIME_DIR": str(folder)}
    return subprocess.Popen(
        command,
        pass_fds=[listener.fileno()],
        cwd=folder,
        env=environment,
        start_new_session=True,
        stderr=subprocess.PIPE,
        **more,
    )


@contextmanager
def running_front(
    listener: socket.socket, text: str, folder: Path, program: list[str] = MODULE, **more: Any
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server process with the argument `text` until the block ends."""
    with start([*program, text], listener, folder, **more) as process:
        try:
            wait_until_alive(listener)
            yield process
        finally:
            process.kill()


def connect(listener: socket.socket) -> http.client.HTTPConnection:
    """Return a connection that is made with its first request."""
    return http.client.HTTPConnection("127.0.0.1", listener.getsockname()[1], timeout=10)


def wait_until_alive(listener: socket.socket) -> None:
    """Return once the server answers."""
    connection = connect(listener)
    connection.request("GET", "/")
    assert connection.getresponse().read() == b"Ollama is running"
    connection.close()


def ask(listener: socket.socket, **body: Any) -> http.client.HTTPConnection:
    """Return a connection on which a prompt was sent."""
    connection = connect(listener)
    connection.request("POST", "/api/generate", json.dumps({"model": "demo", "prompt": "x"} | body))
    return connection


def process_group(leader: int) -> list[int]:
    """Return the living processes of the leader's session."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if entry.name.isdigit() and int(fields[3]) == leader and fields[0] != "Z":
            found.append(int(entry.name))
    return found
