"""Print what a grammar costs: tokens per second of free answers and of answers bound to printable text.

    python benchmarks/grammar.py [--ranks 2] [--clients 1 4 16 64] [--model FOLDER] [key=value ...]

Every client reads an answer of 128 tokens over HTTP. The grammar allows so much that both kinds take as many steps.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from support.servers import Server, endless_model, server  # noqa: E402

TOKENS = 128
FREE: dict[str, Any] = {}
BOUND = {"grammar": {"regex": r"[ -~\n]*"}}


def tokens_per_s(job: Server, model: str, clients: int, form: dict[str, Any]) -> float:
    """Return the tokens per second of `clients` requests at once."""

    def answer(number: int) -> int:
        options = {"temperature": 1, "seed": number, "num_predict": TOKENS, **form}
        body = {"model": model, "prompt": f"# {number}\nimport os\n", "raw": True, "stream": False, "options": options}
        status, reply = job.request("POST", "/api/generate", body, timeout_s=600)
        assert status == 200, reply
        return int(reply["eval_count"])

    with ThreadPoolExecutor(clients) as pool:
        began = time.perf_counter()
        return sum(pool.map(answer, range(clients))) / (time.perf_counter() - began)


def main() -> None:
    """Measure what the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--model", type=Path, help="a model folder; the demo model without an end if not")
    parser.add_argument("settings", nargs="*")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = args.model or endless_model(Path(folder))
        with server(args.ranks, Path(folder), f"model={model}", *args.settings) as job:
            for form in (FREE, BOUND):
                tokens_per_s(job, model.name, 2, form)
            for clients in args.clients:
                free, bound = (tokens_per_s(job, model.name, clients, form) for form in (FREE, BOUND))
                print(f"{clients:3d} clients: free {free:7.0f} tokens/s, bound {bound:7.0f}, {bound / free:5.2f} times")


if __name__ == "__main__":
    main()
