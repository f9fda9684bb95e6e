"""Print what cache types and weight formats cost in quality and save in memory: the demo model, held-out text.

    python benchmarks/quality.py [--rows 64]

The text is what train_demo.py held out of the running Python's standard library, in windows of 1024 tokens; the loss
is the mean over all their tokens, as train_demo.py computes it.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from train_demo import corpus, encode

from ollampi.mpiruntime.communicator import Single
from ollampi.mpiruntime.memory import BITS, cache_bytes
from ollampi.mpiruntime.model_config import read_config
from ollampi.mpiruntime.plan import num_parameters, shard_size
from ollampi.mpiruntime.runner import Runner
from ollampi.mpiruntime.shard import Shard
from ollampi.mpiruntime.step import Chunk, Load, Step
from ollampi.mpiruntime.world import survey

DEMO = Path(__file__).resolve().parent.parent / "conf/models/demo"
LENGTH, BLOCK = 1024, 16
NUM_BLOCKS = LENGTH // BLOCK
KEPT = ("float32", "bfloat16", "int8")


def held_out(rows: int) -> tuple[list[list[int]], list[torch.Tensor]]:
    """Return so many windows of the text, and the tokens behind each of theirs."""
    text = encode(Tokenizer.from_file(str(DEMO / "tokenizer.json")), corpus()[1])
    windows = [text[i * LENGTH : (i + 1) * LENGTH].tolist() for i in range(rows)]
    return windows, [text[i * LENGTH + 1 : (i + 1) * LENGTH + 1] for i in range(rows)]


def window_logits(
    dtype: str, kept: str, windows: list[list[int]], quantize: str = "none", folder: Path = DEMO
) -> list[torch.Tensor]:
    """Return the logits [T, V] of each window of a model in dtype and format, with a cache that keeps `kept`."""
    comm = Single()
    runner = Runner(comm, survey(comm))
    runner.lead_load(Load(0, str(folder), dtype, LENGTH, NUM_BLOCKS, BLOCK, cache_dtype=kept, quantize=quantize))
    rows = []
    for tokens in windows:
        logits = runner.step(Step(0, [Chunk(tokens, 0, list(range(NUM_BLOCKS)), len(tokens))])).logits
        assert logits is not None
        rows.append(logits)
    return rows


def loss(logits: list[torch.Tensor], targets: list[torch.Tensor]) -> float:
    """Return the mean loss in nats per token."""
    return sum(F.cross_entropy(*pair).item() for pair in zip(logits, targets, strict=True)) / len(targets)


def compare(found: list[torch.Tensor], exact: list[torch.Tensor], targets: list[torch.Tensor]) -> str:
    """Return the loss of the found logits, and how far they are from the exact ones."""
    pairs = list(zip(found, exact, strict=True))
    moved = sum((a - b).abs().mean().item() for a, b in pairs) / len(pairs)
    same = sum((a.argmax(-1) == b.argmax(-1)).float().mean().item() for a, b in pairs) / len(pairs)
    return (
        f"{loss(found, targets):.5f} nats per token ({loss(found, targets) - loss(exact, targets):+.5f}),"
        f" logits off by {moved:.4f} on average, {100 * same:.2f} % of greedy tokens the same"
    )


def tokens_per_gib(kept: str) -> str:
    """Return how many positions a GiB holds on one rank."""
    return f"{(1 << 30) // cache_bytes(read_config(DEMO), Shard(0, 1), 1, kept)} tokens per GiB"


def main() -> None:
    """Print one line per type of the model and of its cache."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=64, help="windows of the text")
    rows = parser.parse_args().rows
    windows, targets = held_out(rows)
    print(f"{rows} windows of {LENGTH} tokens")
    for dtype in ("float32", "bfloat16"):
        exact = window_logits(dtype, dtype, windows)
        for kept in KEPT[KEPT.index(dtype) :]:
            found = exact if kept == dtype else window_logits(dtype, kept, windows)
            print(f"model {dtype}, cache {kept}: {compare(found, exact, targets)}; {tokens_per_gib(kept)}", flush=True)
    print_formats(windows, targets)


def print_formats(windows: list[list[int]], targets: list[torch.Tensor]) -> None:
    """Print one line per format of the weights."""
    config = read_config(DEMO)
    exact = window_logits("float32", "float32", windows)
    for quantize in ("none", *BITS):
        found = exact if quantize == "none" else window_logits("float32", "float32", windows, quantize)
        size = shard_size(config, Shard(0, 1), "float32", quantize).total_bytes * 8 / num_parameters(config)
        worse = 100 * (math.exp(loss(found, targets) - loss(exact, targets)) - 1)
        print(f"weights {quantize}: {compare(found, exact, targets)}; perplexity {worse:+.2f} %; {size:.2f} bits each")


if __name__ == "__main__":
    main()
