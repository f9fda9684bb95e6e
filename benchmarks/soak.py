"""Send a server thousands of random requests and print how they ended and what it held before and after.

    python benchmarks/soak.py [--ranks 4] [--requests 10000] [--clients 24] [--seed 1]

Options are mixed and partly hostile; clients leave, send too much or too many at once, or set deadlines. A request that
ends otherwise than documented, broken block accounting or a dead process ends the run with an error.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from support.servers import server  # noqa: E402
from support.soak import CONTEXT, Resources, resources, soak  # noqa: E402

PARTS = 10


def line(held: Resources) -> str:
    """Return what a job holds, in words."""
    return f"{held.descriptors} descriptors, {held.threads} threads, {held.memory_bytes / 2**20:.0f} MiB"


def main() -> None:
    """Measure what the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=24)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    settings = (
        f"engine.context_length={CONTEXT}",
        "engine.cache_tokens=2048",
        "engine.max_queue=11",
        "engine.max_running=12",
    )
    with tempfile.TemporaryDirectory() as folder, server(args.ranks, Path(folder), *settings) as job:
        print(f"at the start: {line(resources(job))}", flush=True)
        began, total = time.perf_counter(), 0
        for part in range(PARTS):
            outcomes = soak(job, args.requests // PARTS, args.clients, args.seed * 1000 + part)
            time.sleep(3)  # connections of clients that left are closed meanwhile
            total += sum(outcomes.values())
            print(f"after {total} requests, {time.perf_counter() - began:.0f} s: {line(resources(job))}", flush=True)
            print("  " + ", ".join(f"{name} {count}" for name, count in sorted(outcomes.items())), flush=True)
        job.generate("import", 5)
        print(job.log.read_text()[-2000:] if job.process.poll() is not None else "the server lives", flush=True)


if __name__ == "__main__":
    main()
