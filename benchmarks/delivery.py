"""Print what HTTP adds to a token: from the engine's having it to its arrival at the client, and to its being read.

    python benchmarks/delivery.py [--streams 1 16 128] [--tokens 150]

One rank with one thread computes the demo model; HTTP process and clients are processes of their own, as in a server.
The clients are one process, which reads one connection after the other and wants a core for it; when a token arrived is
what the kernel noted. All clocks are CLOCK_MONOTONIC of this host.
"""

from __future__ import annotations

import argparse
import json
import select
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from support.servers import endless_model  # noqa: E402

from ollampi.launcher import assemble  # noqa: E402
from ollampi.launcher.config import compose_config  # noqa: E402
from ollampi.launcher.http_process import listen, start_front  # noqa: E402
from ollampi.mpiruntime.communicator import Single  # noqa: E402
from ollampi.mpiruntime.ending import END  # noqa: E402
from ollampi.mpiruntime.engine import Engine  # noqa: E402
from ollampi.mpiruntime.hosted import Models  # noqa: E402
from ollampi.mpiruntime.stepper import Progress  # noqa: E402

SO_TIMESTAMPNS = 35  # of Linux; with each read, the kernel tells when the last of it arrived
WARM_UP = 20  # tokens of each stream that do not count


def read_streams(port: int, streams: int, tokens: int) -> None:
    """Ask for all streams at once, read them, print when each token of each arrived and was read."""
    poll = select.epoll()
    connections: dict[int, tuple[socket.socket, int]] = {}
    reads: list[tuple[float, int, bytes, Any]] = []  # looked at in the end, so that reading costs little
    for number in range(streams):
        connection = socket.create_connection(("127.0.0.1", port))
        connection.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        options = {"seed": number, "num_predict": tokens, "draft_num_predict": 0}
        body = json.dumps({"model": "endless", "prompt": f"# {number}\n", "raw": True, "options": options})
        head = f"POST /api/generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall((head + body).encode())
        connections[connection.fileno()] = connection, number
        poll.register(connection, select.EPOLLIN)
    open_streams = streams
    while open_streams:
        for fd, _ in poll.poll():
            connection, number = connections[fd]
            data, noted, _, _ = connection.recvmsg(65536, 64)
            reads.append((time.monotonic(), number, data, noted))
            if not data or data.endswith(b"\r\n0\r\n\r\n"):
                poll.unregister(fd)
                open_streams -= 1
    since_1970 = time.time() - time.monotonic()
    arrived: list[list[float]] = [[] for _ in range(streams)]
    read: list[list[float]] = [[] for _ in range(streams)]
    for now, number, data, noted in reads:
        count = data.count(b'"done":false')
        seconds, nanoseconds = struct.unpack("qq", noted[0][2]) if noted else (0, 0)
        arrived[number] += [seconds + nanoseconds / 1e9 - since_1970] * count
        read[number] += [now] * count
    print(json.dumps([arrived, read]))


def measure(model: Path, streams: int, tokens: int) -> None:
    """Print the percentiles of one number of streams."""
    config = compose_config([f"model={model}", "server.port=0", "engine.cache_tokens=65536", "dtype=float32"], {})
    comm = Single()
    runner, _ = assemble.runner(comm, config)
    torch.set_num_threads(1)
    listener, inbox = listen(config), assemble.inbox(runner)
    front = start_front(config, listener, inbox.address)
    port = listener.getsockname()[1]
    arguments = [sys.executable, __file__, "--read", str(port), "--streams", str(streams), "--tokens", str(tokens)]
    models = Models(runner, config.engine)
    models.pin(assemble.find_model(config, config.model))
    reader = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
    sent: list[list[float]] = [[] for _ in range(streams)]
    engine = Engine(
        runner, models, inbox, 1.0, supervise=lambda: comm.notify(END) if reader.poll() is not None else None
    )
    deliver = engine._deliver

    def delivering(progress: Progress) -> None:
        """Note when the engine has a token."""
        sent[progress.sequence.request.sampling.seed or 0] += [time.monotonic()] * len(progress.tokens)
        deliver(progress)

    engine._deliver = delivering  # type: ignore[method-assign]
    try:
        output: list[str] = []
        _run(engine, reader, output)
        received = json.loads(output[0])
    finally:
        inbox.close()
        front.terminate()
        front.wait()
        listener.close()
    gaps = [b - a for mine in sent for a, b in zip(mine[WARM_UP:], mine[WARM_UP + 1 :], strict=False)]
    ends = [f"{what} after {_late(sent, times)}" for what, times in zip(("arrives", "is read"), received, strict=True)]
    print(
        f"{streams} streams: a token {', '.join(ends)}; {statistics.median(gaps) * 1e3:.1f} ms between tokens",
        flush=True,
    )


def _late(sent: list[list[float]], received: list[list[float]]) -> str:
    """Return the percentiles of how much later than sent the tokens were received."""
    late = sorted(
        r - s
        for mine, theirs in zip(sent, received, strict=True)
        for s, r in list(zip(mine, theirs, strict=False))[WARM_UP:]
    )
    return f"p50 {statistics.median(late) * 1e3:.2f} ms, p99 {late[int(len(late) * 0.99)] * 1e3:.2f} ms"


def _run(engine: Engine, reader: subprocess.Popen[str], output: list[str]) -> None:
    """Run the engine while a thread collects what the reader prints."""
    collector = threading.Thread(target=lambda: output.append(reader.communicate()[0]))
    collector.start()
    engine.run()
    collector.join()


def main() -> None:
    """Measure what the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 16, 128])
    parser.add_argument("--tokens", type=int, default=150)
    parser.add_argument("--read", type=int, help="be the clients of a port; used by the above")
    args = parser.parse_args()
    if args.read:
        read_streams(args.read, args.streams[0], args.tokens)
        return
    with tempfile.TemporaryDirectory() as folder:
        model = endless_model(Path(folder))
        for streams in args.streams:
            measure(model, streams, args.tokens)


if __name__ == "__main__":
    main()
