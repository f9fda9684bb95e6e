"""Print what long prompts cost: the first token with and without a cached beginning, and what other streams feel.

python benchmarks/latency.py [--ranks 2] [--prompt 2000] [--long 8000] [key=value ...]
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import statistics
import sys
import tempfile
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from support.servers import Server, endless_model, server  # noqa: E402

CONTEXT = 16384
WORDS = ["import", "class", "return", "self", "None", "raise", "value", "object"]


def text(tokens: int, seed: int) -> str:
    """Return a text of about so many tokens."""
    rng = random.Random(seed)
    return " ".join(rng.choice(WORDS) for _ in range(tokens))


def token_times(job: Server, prompt: str, count: int) -> tuple[list[float], int]:
    """Return the seconds at which the tokens of an answer came, from sending the request, and the prompt's tokens."""
    options = {"temperature": 0, "num_predict": count, "num_ctx": CONTEXT, "draft_num_predict": 0}
    body: dict[str, Any] = {"model": "endless", "prompt": prompt, "raw": True, "options": options}
    connection = http.client.HTTPConnection("127.0.0.1", job.port, timeout=600)
    began, times, last = time.perf_counter(), [], {}
    connection.request("POST", "/api/generate", json.dumps(body))
    for line in connection.getresponse():
        times.append(time.perf_counter() - began)
        last = json.loads(line)
    connection.close()
    return times, int(last["prompt_eval_count"])


def measure_prefix(job: Server, tokens: int) -> None:
    """Print the time to the first token of a prompt that is new, and of one whose beginning is cached."""
    new, cached, count = [], [], 0
    for seed in range(5):
        prompt = text(tokens, seed)
        times, count = token_times(job, prompt + " a", 1)
        new.append(times[0])
        cached.append(token_times(job, prompt + " b", 1)[0][0])
    ratio = statistics.median(new) / statistics.median(cached)
    print(
        f"first token of {count} tokens: {statistics.median(new) * 1e3:.1f} ms, with the beginning cached"
        f" {statistics.median(cached) * 1e3:.1f} ms, {ratio:.1f} times shorter",
        flush=True,
    )


def gaps(times: list[float], begin: float, end: float) -> list[float]:
    """Return the seconds between neighbouring tokens that came within [begin, end]."""
    return [b - a for a, b in pairwise(times) if a >= begin and b <= end]


def measure_stall(job: Server, tokens: int, streams: int) -> None:
    """Print the time between tokens of running streams without and with a long prompt coming in."""
    results: list[list[float]] = []
    threads = [
        threading.Thread(target=lambda n=n: results.append(token_times(job, text(20, n), 900)[0]))
        for n in range(streams)
    ]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    time.sleep(1.5)
    sent = time.perf_counter() - began
    times, count = token_times(job, text(tokens, 99 + streams), 1)
    for thread in threads:
        thread.join()
    alone = [gap for times_of in results for gap in gaps(times_of, 0.3, sent)]
    beside = [gap for times_of in results for gap in gaps(times_of, sent, sent + times[0])]
    usual, slowed = statistics.median(alone) * 1e3, statistics.median(beside) * 1e3
    print(
        f"{streams} streams: {usual:.2f} ms between tokens, {slowed:.2f} ms ({slowed / usual:.1f} times; worst"
        f" {max(beside) * 1e3:.0f}) while a prompt of {count} tokens takes {times[0]:.2f} s",
        flush=True,
    )


def main() -> None:
    """Measure what the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=2000)
    parser.add_argument("--long", type=int, default=8000)
    parser.add_argument("settings", nargs="*")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = endless_model(Path(folder))
        config = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps(config | {"max_position_embeddings": CONTEXT}))
        settings = [f"model={model}", f"engine.context_length={CONTEXT}", "engine.cache_tokens=65536", *args.settings]
        with server(args.ranks, Path(folder), *settings) as job:
            print(f"{args.ranks} ranks, {' '.join(args.settings)}", flush=True)
            measure_prefix(job, args.prompt)
            for streams in (1, 8):
                measure_stall(job, args.long, streams)


if __name__ == "__main__":
    main()
