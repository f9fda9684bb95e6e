"""Print how long a model's tokenizer keeps the other threads of the HTTP process from running.

    python benchmarks/tokenizer_stall.py [--tokens 128000] [--merges 280147] [--chars 200000]

A thread wakes every millisecond, as one would that sends the tokens of streams, and notes the longest time between two
times. Meanwhile another uses a byte-level tokenizer of made-up tokens, by default as large as Llama 3's, for the first
time, reads a prompt with it, and joins tokens: in this process (as it was once), and as the HTTP process does it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from support.vocabularies import large_byte_tokenizer  # noqa: E402

from ollampi.api.text_encoder import TextEncoder  # noqa: E402
from ollampi.api.text_process import TextProcess  # noqa: E402
from ollampi.api.text_tokenizer import Encoder, TextTokenizer  # noqa: E402
from ollampi.mpiruntime.tokenizer_folder import tokenizer_at  # noqa: E402

CONTEXT = 131_072


def gap_ms(work: Callable[[], object]) -> tuple[float, float]:
    """Return how long `work` takes in seconds, and the longest gap of a thread that ticks beside it in ms."""
    longest, is_over = 0.0, threading.Event()

    def tick() -> None:
        nonlocal longest
        last = time.perf_counter()
        while not is_over.is_set():
            time.sleep(0.001)
            now = time.perf_counter()
            longest, last = max(longest, now - last), now

    ticker = threading.Thread(target=tick)
    ticker.start()
    time.sleep(0.05)
    started = time.perf_counter()
    work()
    taken_s = time.perf_counter() - started
    is_over.set()
    ticker.join()
    return taken_s, longest * 1000


def report(where: str, make: Callable[[], Encoder], prompt: str) -> None:
    """Print the times of one way to have a tokenizer."""
    made: list[TextTokenizer] = []
    ids: list[int] = []
    steps: dict[str, Callable[[], object]] = {
        "first use": lambda: made.append(TextTokenizer(make(), "", CONTEXT)),
        "prompt": lambda: ids.extend(made[0].encode(prompt)),
        "prompt with special tokens": lambda: made[0].encode_plain(prompt + "<|reserved_7|>"),
        "tokens": lambda: [made[0].token_bytes(token) for token in ids[:1000]],
    }
    for name, step in steps.items():
        taken_s, longest_ms = gap_ms(step)
        print(f"{where:<18}{name:<28}{taken_s:8.3f} s, longest gap {longest_ms:7.1f} ms", flush=True)


def main() -> None:
    """Measure both ways."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tokens", type=int, default=128_000, help="but for 256 special ones")
    parser.add_argument("--merges", type=int, default=280_147)
    parser.add_argument("--chars", type=int, default=200_000, help="of the prompt")
    options = parser.parse_args()
    process = TextProcess()
    process.start()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        content = json.dumps(large_byte_tokenizer(options.tokens, options.merges), ensure_ascii=False)
        (path / "tokenizer.json").write_text(content)
        prompt = ("The quick brown fox jumps over the lazy dog, and over 13 others. " * options.chars)[: options.chars]
        time.sleep(1)
        _, idle_ms = gap_ms(lambda: time.sleep(2))
        print(f"{'nobody':<18}{'nothing':<28}{2:8.3f} s, longest gap {idle_ms:7.1f} ms")
        report("this process", lambda: TextEncoder(lambda: tokenizer_at(path), "tokenizer.json"), prompt)
        report("its own process", lambda: process.encoder(path, "tokenizer.json"), prompt)


if __name__ == "__main__":
    main()
