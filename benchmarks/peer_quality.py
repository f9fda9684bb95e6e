"""Print the perplexity of the demo model here and in llama.cpp: fp32, 8 bits, 4 bits. Needs the peers extra.

    python benchmarks/peer_quality.py [--rows 16]
    python benchmarks/peer_quality.py --check MODEL_FOLDER KIND EXPORT_FOLDER

The text and its windows are those of quality.py. --check prints instead how far the logits of one export (q8, q4, bf16)
are from ours in the same format.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import tempfile
from pathlib import Path

import torch
from gguf_export import export
from peer_llama import Llama
from quality import DEMO, held_out, loss, window_logits
from torch import Tensor

from ollampi.mpiruntime.model_config import read_config

CHECKED = 64
FORMATS = {"fp32": "none", "bf16": "none", "q8": "q8", "q4": "q4"}


def peer_logits(path: Path, windows: list[list[int]]) -> list[Tensor]:
    """Return the logits [T, V] of each window in llama.cpp."""
    peer = Llama(path, len(os.sched_getaffinity(0)))
    return [torch.from_numpy(peer.logits(tokens)) for tokens in windows]


def check(folder: Path, kind: str, into: Path) -> str:
    """Return how far the logits of an export are from ours, of random tokens; a mistake in it makes them unlike."""
    draw = random.Random(0)
    tokens = [draw.randrange(read_config(folder).vocab_size) for _ in range(CHECKED)]
    found = peer_logits(export(folder, kind, into), [tokens])[0]
    mine = window_logits("float32", "float32", [tokens], FORMATS[kind], folder)[0]
    same = (found.argmax(1) == mine.argmax(1)).float().mean().item()
    return (
        f"{kind}: logits of llama.cpp and ours differ by at most {(found - mine).abs().max():.3f}, {found.std():.2f} is"
        f" their own deviation; {100 * same:.0f} % of greedy tokens the same ({CHECKED} random tokens)"
    )


def main() -> None:
    """Print the table, or check an export."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=16, help="windows of the text")
    parser.add_argument("--check", nargs=3, metavar=("MODEL_FOLDER", "KIND", "EXPORT_FOLDER"))
    args = parser.parse_args()
    if args.check is not None:
        folder, kind, into = args.check
        print(check(Path(folder), kind, Path(into)))
        return
    windows, targets = held_out(args.rows)
    exact = math.exp(loss(window_logits("float32", "float32", windows), targets))
    print(f"{args.rows} windows of {len(windows[0])} tokens, perplexity\n| weights | here | | llama.cpp | |")
    with tempfile.TemporaryDirectory() as into:
        for kind in ("fp32", "q8", "q4"):
            here = window_logits("float32", "float32", windows, FORMATS[kind])
            there = peer_logits(export(DEMO, kind, Path(into)), windows)
            found = [math.exp(loss(logits, targets)) for logits in (here, there)]
            print(
                f"| {kind} | " + " | ".join(f"{p:.4f} | {100 * (p / exact - 1):+.2f} %" for p in found), "|", flush=True
            )


if __name__ == "__main__":
    main()
