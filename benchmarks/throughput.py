"""Print tokens per second of a server against the number of clients that ask at once.

    python benchmarks/throughput.py [--ranks 2] [--clients 1 2 4 8 16 32 64] [--tokens 128] [--large] [key=value ...]

Every client sends one prompt of its own and reads an answer over HTTP; the ratio is to one client. --large takes a
random model of 1.04 billion weights (width 2048, MLP 8192, 16 layers, 32 heads of which 8 for keys, 16384 tokens).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from large_model import large_model  # noqa: E402
from support.servers import Server, endless_model, server  # noqa: E402


def answer(job: Server, model: str, number: int, tokens: int) -> int:
    """Return how many tokens one client got."""
    options = {"temperature": 0, "num_predict": tokens}
    prompt = f"# {number}\nimport os\nclass Task{number}:\n"
    body = {"model": model, "prompt": prompt, "raw": True, "stream": False, "options": options}
    status, reply = job.request("POST", "/api/generate", body, timeout_s=600)
    assert status == 200, reply
    return int(reply["eval_count"])


def tokens_per_s(job: Server, model: str, clients: int, tokens: int) -> float:
    """Return the tokens per second of `clients` requests at once."""
    with ThreadPoolExecutor(clients) as pool:
        began = time.perf_counter()
        count = sum(pool.map(lambda number: answer(job, model, number, tokens), range(clients)))
        return count / (time.perf_counter() - began)


def main() -> None:
    """Measure what the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--large", action="store_true")
    parser.add_argument("settings", nargs="*")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = large_model(Path(folder)) if args.large else endless_model(Path(folder))
        with server(args.ranks, Path(folder), f"model={model}", *args.settings) as job:
            name = model.name
            tokens_per_s(job, name, max(args.clients), args.tokens)
            alone = max(tokens_per_s(job, name, 1, args.tokens) for _ in range(3))
            print(f"{args.ranks} ranks, {' '.join(args.settings)}", flush=True)
            for clients in args.clients:
                rate = tokens_per_s(job, name, clients, args.tokens)
                print(f"{clients:3d} clients: {rate:7.0f} tokens/s, {rate / alone:5.2f} times one", flush=True)


if __name__ == "__main__":
    main()
