"""Print how late tokens arrive at their clients where an engine makes them at a steady pace, and what that costs.

    python benchmarks/paced.py [--streams 256] [--rate 10] [--seconds 60]

The HTTP process is the real one; the engine is a loop that sends every stream its next token, in one frame for all as
the engine's steps do, so that nothing but HTTP is measured. The clients are the process of benchmarks/delivery.py.
Lateness is from the frame's time by the clock of the pace to the arrival that the kernel notes.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from support.fronts import arguments, running_front  # noqa: E402
from support.servers import endless_model  # noqa: E402

from ollampi.mpiruntime import wire  # noqa: E402

WARM_UP = 20  # tokens of each stream that do not count, as in delivery.py
TOKENS = range(300, 1300)  # of the demo model's vocabulary: words, so that no answer repeats itself too often


class Pace:
    """An engine that answers generate with tokens at a steady pace; `due` holds when each frame was due."""

    def __init__(self, num_streams: int, num_tokens: int, rate: float) -> None:
        self.address = f"unix:@ollampi-paced-{uuid.uuid4().hex}"
        self.due: list[float] = []
        self._num_streams, self._num_tokens, self._rate = num_streams, num_tokens, rate
        self._ids: list[int] = []
        self._all = threading.Event()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(wire.unix_address(self.address))
        self._listener.listen()

    def run(self) -> None:
        """Take one connection, wait for all streams, send all tokens and the ends."""
        connection, _ = self._listener.accept()
        threading.Thread(target=self._read, args=(connection,), daemon=True).start()
        self._all.wait()
        start = time.monotonic() + 0.5
        for number in range(self._num_tokens):
            due = start + number / self._rate
            time.sleep(max(0.0, due - time.monotonic()))
            self.due.append(due)
            token = [TOKENS[number % len(TOKENS)]]
            events = [{"id": i, "kind": "tokens", "tokens": token, "logprobs": []} for i in self._ids]
            wire.send(connection, {"events": events})
        usage = {"prompt_tokens": 1, "generated_tokens": self._num_tokens}
        wire.send(
            connection, {"events": [{"id": i, "kind": "done", "reason": "length", "usage": usage} for i in self._ids]}
        )

    def _read(self, connection: socket.socket) -> None:
        while True:
            try:
                message = wire.receive(connection)
            except wire.Closed:
                return
            if message["op"] == "generate":
                self._ids.append(message["id"])
            if len(self._ids) == self._num_streams:
                self._all.set()


def resident_mib(pids: list[int]) -> float:
    """Return the memory of processes."""
    pages = [int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids]
    return sum(pages) * resource.getpagesize() / 2**20


def busy_s(pids: list[int]) -> float:
    """Return the processor time of processes."""
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(f[11]) + int(f[12]) for f in fields) / os.sysconf("SC_CLK_TCK")


def measure(folder: Path, streams: int, rate: float, seconds: float) -> None:
    """Print the result of one run."""
    num_tokens = int(seconds * rate) + WARM_UP
    pace = Pace(streams, num_tokens, rate)
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        os.set_inheritable(listener.fileno(), True)
        text = arguments(listener, pace.address, folder, os.getpid(), threads=streams + 16)
        with running_front(listener, text, folder) as front:
            pids = [front.pid, *map(int, Path(f"/proc/{front.pid}/task/{front.pid}/children").read_text().split())]
            port = listener.getsockname()[1]
            script = str(ROOT / "benchmarks" / "delivery.py")
            line = [sys.executable, script, "--read", str(port), "--streams", str(streams), "--tokens", str(num_tokens)]
            engine = threading.Thread(target=pace.run, daemon=True)
            engine.start()
            before_s, begun, before_mib = busy_s(pids), time.monotonic(), resident_mib(pids)
            output = subprocess.run(line, stdout=subprocess.PIPE, check=True, text=True).stdout
            spent_s, took_s, after_mib = busy_s(pids) - before_s, time.monotonic() - begun, resident_mib(pids)
            engine.join()
    arrived, _ = json.loads(output)
    counts = {len(times) for times in arrived}
    late = sorted(a - d for times in arrived for a, d in list(zip(times, pace.due, strict=False))[WARM_UP:])
    whole = "each stream whole" if counts == {num_tokens} else f"streams of {sorted(counts)[:5]} tokens"
    ms = [1e3 * value for value in (statistics.median(late), late[int(len(late) * 0.99)], late[-1])]
    print(
        f"{streams} streams at {rate:g} tokens/s for {seconds:g} s: {sum(map(len, arrived))} tokens arrived, {whole};"
        f" late p50 {ms[0]:.1f} ms, p99 {ms[1]:.1f} ms, worst {ms[2]:.1f} ms;"
        f" HTTP process {spent_s / took_s:.2f} cores, memory {before_mib:.0f} to {after_mib:.0f} MiB"
    )


def main() -> None:
    """Measure what the arguments ask for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--rate", type=float, default=10.0)
    parser.add_argument("--seconds", type=float, default=60.0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as parent:
        endless_model(Path(parent))
        measure(Path(parent), args.streams, args.rate, args.seconds)


if __name__ == "__main__":
    main()
