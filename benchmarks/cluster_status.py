"""Print how soon a server answers questions about the cluster while streams run.

    python benchmarks/cluster_status.py [--ranks 2] [--streams 64] [--seconds 20] [--model PATH]

The streams are read by a process of their own, and each question waits for the answer to the one before; every tenth
comes over a new connection. Without --model the demo model answers, as one that never stops.
"""

from __future__ import annotations

import argparse
import http.client
import json
import selectors
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from support.servers import endless_model, server  # noqa: E402

PATHS = ("/api/cluster/status", "/api/cluster/nodes", "/api/cluster/health", "/api/v1/proxy/metrics")
LIMIT_MS = 50.0
_PAUSE_S = 0.005


def read_streams(port: int, model: str, count: int) -> None:
    """Open so many streams and read them until this process is ended; print a line when all have begun."""
    chosen = selectors.DefaultSelector()
    body = json.dumps({"model": model, "prompt": "import", "raw": True, "options": {"num_predict": 10**6}}).encode()
    head = f"POST /api/generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    for _ in range(count):
        connection = socket.create_connection(("127.0.0.1", port))
        connection.sendall(head + body)
        chosen.register(connection, selectors.EVENT_READ)
    begun: set[int] = set()
    while True:
        for key, _ in chosen.select():
            assert isinstance(key.fileobj, socket.socket)
            data = key.fileobj.recv(1 << 16)
            assert data, "a stream has ended"
            if b'"response"' in data and key.fd not in begun:
                begun.add(key.fd)
                if len(begun) == count:
                    print("all streams run", flush=True)


def answers_ms(port: int, path: str, seconds: float) -> list[float]:
    """Return the milliseconds of answers, ascending."""
    took: list[float] = []
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        if len(took) % 10 == 0:
            connection.close()  # and opens another one with the next request
        began = time.perf_counter()
        connection.request("GET", path)
        response = connection.getresponse()
        text = response.read()
        took.append((time.perf_counter() - began) * 1e3)
        assert response.status == 200, text
        time.sleep(_PAUSE_S)
    connection.close()
    return sorted(took)


def main() -> None:
    """Measure what the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--model", help="the path of a model's folder")
    parser.add_argument("--read", nargs=2, metavar=("PORT", "MODEL"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.read:
        read_streams(int(args.read[0]), args.read[1], args.streams)
        return
    with tempfile.TemporaryDirectory() as folder:
        model = Path(args.model) if args.model else endless_model(Path(folder))
        with server(args.ranks, Path(folder), f"model={model}") as job:
            line = [sys.executable, __file__, "--streams", str(args.streams), "--read", str(job.port), model.name]
            with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as reader:
                assert reader.stdout is not None
                print(f"{args.ranks} ranks, {args.streams} streams: {reader.stdout.readline().strip()}", flush=True)
                for path in PATHS:
                    took = answers_ms(job.port, path, args.seconds / len(PATHS))
                    p50, p99 = statistics.median(took), took[int(len(took) * 0.99)]
                    verdict = "under" if p99 < LIMIT_MS else "NOT under"
                    print(
                        f"{path}: p50 {p50:.1f} ms, p99 {p99:.1f} ms, most {took[-1]:.1f} ms of {len(took)} answers;"
                        f" {verdict} {LIMIT_MS:.0f} ms",
                        flush=True,
                    )
                reader.kill()


if __name__ == "__main__":
    main()
