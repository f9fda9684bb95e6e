"""See what a job leaves behind, and what the tests of its end have in common."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from support.servers import READY_S, Server, alive, free_port, wait_until


def shared_memory() -> set[str]:
    """Return the shared-memory files of MPI libraries that no process maps; other jobs may be starting meanwhile."""
    kinds = ("sm_segment", "mpich_shm", "vader", "ucx")
    names = {name for name in os.listdir("/dev/shm") if name.startswith(kinds)}
    for entry in Path("/proc").iterdir() if names else ():
        with suppress(OSError):
            mapped = (entry / "maps").read_text() if entry.name.isdigit() else ""
            names = {name for name in names if name not in mapped}
    return names


def port_is_free(port: int) -> bool:
    """Return whether nobody listens on a port of this host."""
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return s.connect_ex(("127.0.0.1", port)) != 0


def assert_nothing_is_left(job: Server, pids: list[int], before: set[str], within_s: float) -> None:
    """Assert that the processes and the port of a job go, and the shared memory that was not there before."""
    wait_until(lambda: not any(alive(p) for p in pids), within_s, f"processes {[p for p in pids if alive(p)]} to end")
    wait_until(lambda: port_is_free(job.port), within_s, f"port {job.port} to be free")
    wait_until(lambda: shared_memory() <= before, within_s, "shared memory to go")  # that of a start beside goes, too
    assert "@ollampi-" not in Path("/proc/net/unix").read_text() or not any(
        f"@ollampi-{p}-" in Path("/proc/net/unix").read_text() for p in pids
    )


def open_stream(job: Server, num_predict: int = 5000) -> socket.socket:
    """Return a connection on which an answer of the endless model is coming in."""
    connection = socket.create_connection(("127.0.0.1", job.port), timeout=60)
    options = {"temperature": 0, "num_predict": num_predict}
    body = json.dumps({"model": "endless", "prompt": "import", "raw": True, "options": options}).encode()
    head = f"POST /api/generate HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)
    received = b""
    while b'"response"' not in received:
        data = connection.recv(65536)
        assert data, received
        received += data
    return connection


@contextmanager
def launched(tmp_path: Path, line: str) -> Iterator[Server]:
    """Run `ollampi` with the rest of a shell line until the block ends."""
    port, log = free_port(), tmp_path / "launch.log"
    ollampi = f"exec {sys.executable} -m ollampi {line} server.port={port}"
    with log.open("w") as out, subprocess.Popen(["sh", "-c", ollampi], stdout=out, stderr=out, text=True) as process:
        job = Server(process, port, log)
        try:
            wait_until(lambda: "serving at" in log.read_text() or process.poll() is not None, READY_S, "the server")
            assert process.poll() is None, log.read_text()
            yield job
        finally:
            process.kill()
