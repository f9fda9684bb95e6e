"""Start real servers under mpirun on loopback and look at their processes."""

from __future__ import annotations

import http.client
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ollampi.launcher.leftovers import remove_session
from ollampi.launcher.mpi import command, detect, environment, link_library

_OLD_S = 60.0  # of the folder of an mpirun that is gone, whose ranks may still be ending
READY_S, GONE_S = 120.0, 10.0  # ready beside other tests, too
RANK, COMMAND = "ollampi.launcher.serve", "ollampi serve"  # what `ollampi launch` starts, and a user's own mpirun


DEMO = Path(__file__).resolve().parents[2] / "conf" / "models" / "demo"


def endless_model(parent: Path) -> Path:
    """Write the demo model into `parent` as one that knows no token to stop at; return the folder."""
    folder = parent / "endless"
    shutil.copytree(DEMO, folder)
    for name in ("config.json", "generation_config.json"):
        values = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({k: v for k, v in values.items() if k != "eos_token_id"}))
    return folder


def free_port() -> int:
    """Return a port of this host that nobody uses now, nor takes until a server does.

    It is below those that Linux gives to connections, and each process of these tests has ports of its own.
    """
    first = 20000 + 1000 * (int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 12)
    for port in random.Random().sample(range(first, first + 1000), 1000):
        with socket.socket() as s, suppress(OSError):
            s.bind(("127.0.0.1", port))
            return port
    raise AssertionError(f"no port from {first} to {first + 999} is free")


def mpirun(size: int, program: list[str]) -> tuple[list[str], dict[str, str]]:
    """Return the command line and the environment that run `program` on `size` ranks."""
    remove_old_sessions(Path(tempfile.gettempdir()))
    mpi = detect(None)
    link_library(mpi, os.environ)
    return command(mpi, size, program), {**os.environ, **environment(mpi, os.geteuid() == 0, os.environ)}


def remove_old_sessions(parent: Path) -> None:
    """Remove the folders of mpiruns that were killed, over which a later one with the same pid would trip."""
    for folder in parent.glob("ompi.[0-9]*"):
        pid = int(folder.suffix[1:])
        with suppress(OSError):
            is_old = time.time() - folder.stat().st_mtime > _OLD_S
            if is_old and not Path(f"/proc/{pid}").exists():
                remove_session(pid, {"TMPDIR": str(parent)})


def serve_program(*overrides: str, module: str = RANK) -> list[str]:
    """Return the program of one rank."""
    return [sys.executable, "-m", *module.split(), *overrides]


def wait_until(condition: Callable[[], bool], timeout_s: float, what: str) -> None:
    """Return once the condition holds; raise AssertionError naming `what` where it does not in time."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"waited {timeout_s} s for {what}"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """Return whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def descendants(pid: int) -> list[int]:
    """Return all processes below `pid`, whatever session they are in."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents.setdefault(int(fields[1]), []).append(int(entry.name))
    found, queue = [], [pid]
    while queue:
        children = parents.get(queue.pop(), [])
        found += children
        queue += children
    return found


@dataclass
class Server:
    """A running job."""

    process: subprocess.Popen[str]
    port: int
    log: Path

    def request(self, method: str, path: str, body: Any = None, timeout_s: float = 60) -> tuple[int, Any]:
        """Return status and JSON (or text) of one request."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        try:
            connection.request(method, path, None if body is None else json.dumps(body))
            response = connection.getresponse()
            raw = response.read().decode()
            return response.status, json.loads(raw) if raw.startswith("{") and "\n{" not in raw else raw
        finally:
            connection.close()

    def send(self, method: str, path: str, headers: dict[str, str], body: bytes = b"{") -> int:
        """Return the status of a request whose body, unless given, is broken JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, headers)
            return connection.getresponse().status
        finally:
            connection.close()

    def generate(self, prompt: str, count: int, **options: Any) -> str:
        """Return the greedy text after a raw prompt."""
        settings = {"temperature": 0, "num_predict": count, **options}
        body = {"model": "demo", "prompt": prompt, "raw": True, "stream": False, "options": settings}
        status, answer = self.request("POST", "/api/generate", body)
        assert status == 200, answer
        text: str = answer["response"]
        return text

    def processes(self) -> list[int]:
        """Return mpirun and everything below it: ranks and the HTTP process."""
        return [self.process.pid, *descendants(self.process.pid)]

    def ranks(self) -> list[int]:
        """Return the processes of the ranks, rank 0 first."""
        ranks = []
        for pid in descendants(self.process.pid):
            try:
                environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                line = Path(f"/proc/{pid}/cmdline").read_bytes()
            except OSError:  # it has just ended
                continue
            number = [e.split(b"=")[1] for e in environ if e.startswith((b"OMPI_COMM_WORLD_RANK=", b"PMI_RANK="))]
            if number and b"ollampi.launcher.serve" in line:
                ranks.append((int(number[0]), pid))
        return [pid for _, pid in sorted(ranks)]

    def signal(self, number: int) -> None:
        """Send a signal to mpirun."""
        os.kill(self.process.pid, number)


@contextmanager
def server(
    size: int,
    tmp_path: Path,
    *overrides: str,
    module: str = RANK,
    start: Callable[[int, list[str]], tuple[list[str], dict[str, str]]] = mpirun,
    ready_s: float = READY_S,
) -> Iterator[Server]:
    """Run a server of `size` ranks until the block ends; size 0 runs it without mpirun.

    start: returns the line and the environment that run a program on so many ranks.
    """
    port, log = free_port(), tmp_path / f"serve-{size}.log"
    program = serve_program(f"server.port={port}", *overrides, module=module)
    line, env = start(size, program) if size else (program, dict(os.environ))
    env.setdefault("OLLAMA_MODELS", str(tmp_path / "store"))  # not that of who runs the tests
    with log.open("w") as out:
        process = subprocess.Popen(line, env=env, stdout=out, stderr=out, text=True, start_new_session=True)
    running = Server(process, port, log)
    everyone: list[int] = []
    try:
        wait_until(lambda: "serving at" in log.read_text() or process.poll() is not None, ready_s, "the server")
        assert process.poll() is None, log.read_text()
        everyone = running.processes()
        yield running
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(GONE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for pid in everyone:
            if alive(pid):
                os.kill(pid, signal.SIGKILL)


def run_to_end(size: int, *overrides: str, timeout_s: float = 60) -> tuple[int, str]:
    """Return exit status and output of a job that ends by itself."""
    program = serve_program(*overrides, module=COMMAND)
    line, env = mpirun(size, program) if size else (program, dict(os.environ))
    done = subprocess.run(line, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout_s)
    return done.returncode, done.stdout
