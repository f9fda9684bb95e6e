"""Print how quickly odd values of every option are answered, and whether memory grows.

python benchmarks/bad_options.py [--ranks 2] [--rounds 20]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from support.servers import server  # noqa: E402
from support.soak import HOSTILE, OPTIONS, resources  # noqa: E402

MORE = ["num_batch", "num_gpu", "main_gpu", "num_thread", "draft_num_predict", "use_mmap", "grammar"]


def main() -> None:
    """Measure what the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, server(args.ranks, Path(folder), "engine.cache_tokens=4096") as job:
        statuses: Counter[int] = Counter()
        refused: list[tuple[float, str]] = []
        for turn in range(args.rounds):
            for name in OPTIONS + MORE:
                for value in [*HOSTILE, 0, None]:
                    options = {"num_predict": 1} | {name: value}
                    if options["num_predict"] != 1:
                        options["timeout"] = 0.05  # a huge or missing limit is no mistake
                    body = {"model": "demo", "prompt": "import", "stream": False, "options": options}
                    began = time.perf_counter()
                    status, reply = job.request("POST", "/api/generate", body)
                    seconds = time.perf_counter() - began
                    statuses[status] += 1
                    text = reply.get("error", "")
                    assert status != 500 or text.startswith("option "), (name, value, reply)
                    if status != 200 and status != 504:
                        refused.append((seconds, f"{name}={json.dumps(value)}"))
            if turn in (0, args.rounds - 1):
                print(f"after round {turn + 1}: {resources(job)}", flush=True)
        refused.sort()
        print(f"{sum(statuses.values())} requests, by status {dict(statuses)}")
        print(
            f"refusals: median {refused[len(refused) // 2][0] * 1e3:.1f} ms, slowest {refused[-1][0] * 1e3:.1f} ms"
            f" ({refused[-1][1]})"
        )


if __name__ == "__main__":
    main()
