"""Print what sums in fewer bits, and one sum in a layer, cost in quality: the demo model, held-out text.

    python benchmarks/exchange_quality.py [--rows 16] [--sizes 2 4]

The text and its windows are those of quality.py; ranks are threads, and activations travel in the codes of each level
(kernels/codec.py). A second table counts the tokens of a random mixture of experts for which a router chose others.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from quality import BLOCK, DEMO, LENGTH, NUM_BLOCKS, held_out, loss
from torch import Tensor

from ollampi.kernels.codec import NAMES
from ollampi.mpiruntime.communicator import Communicator
from ollampi.mpiruntime.compressed import Compressed
from ollampi.mpiruntime.decoder_layer import DecoderLayer
from ollampi.mpiruntime.exchange_plan import Choice, always
from ollampi.mpiruntime.mixture import Mixture
from ollampi.mpiruntime.runner import Runner
from ollampi.mpiruntime.step import Chunk, Load, Step, Stop
from ollampi.mpiruntime.synchronization import ONCE
from ollampi.mpiruntime.thread_world import ThreadCommunicator, run_threads
from ollampi.mpiruntime.world import survey

ALGORITHM = "scattered"  # reduce-scatter and all-gather of codes: what large sums are made by
MIXTURE = {"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2, "num_hidden_layers": 4}
WIDE = {"hidden_size": 256, "intermediate_size": 512}


@dataclass(frozen=True)
class Way:
    """How activations are summed: in the codes of a level, None for not at all, and how often in a layer."""

    level: int | None
    points: str = "all"

    @property
    def name(self) -> str:
        """Return it in words."""
        coded = "exact" if self.level is None else f"level {self.level} ({NAMES[self.level]})"
        return coded if self.points == "all" else f"{coded}, {self.points}"


WAYS = [Way(None), *(Way(level) for level in range(5)), Way(None, ONCE), Way(2, ONCE)]


@dataclass(frozen=True)
class Found:
    """The logits [T, V] of each window, and the experts [T, per_token] of each layer and window, sorted."""

    logits: list[Tensor]
    chosen: list[Tensor]


def world(size: int, way: Way, folder: Path, windows: list[list[int]]) -> Found:
    """Return what a world of so many ranks computes."""
    found = run_threads(size, lambda comm: _rank(comm, way, folder, windows))[0]
    assert found is not None
    return found


def _rank(comm: Communicator, way: Way, folder: Path, windows: list[list[int]]) -> Found | None:
    """Return what rank 0 of a world computes, None on the others; collective."""
    assert isinstance(comm, ThreadCommunicator)
    link = comm.link(range(comm.size))
    assert link is not None
    sums = None if way.level is None else Compressed(comm, link, always(Choice(ALGORITHM, way.level)))
    runner = Runner(comm, survey(comm), sums=sums)
    if comm.rank:
        runner.follow()
        return None
    try:
        return _lead(runner, way, folder, windows)
    finally:
        runner.lead(Stop())


def _lead(runner: Runner, way: Way, folder: Path, windows: list[list[int]]) -> Found:
    """Return what rank 0 computes, whose routers are listened to."""
    kept = {"cache_dtype": "float32", "quantize": "none", "points": way.points}
    runner.lead_load(Load(0, str(folder), "float32", LENGTH, NUM_BLOCKS, BLOCK, **kept))
    chosen: list[Tensor] = []
    for layer in runner._models[0].decoder.layers:
        if isinstance(layer, DecoderLayer) and isinstance(layer.mlp.part, Mixture):
            layer.mlp.part._routed = partial(_noted, layer.mlp.part._routed, chosen)  # type: ignore[method-assign]
    rows = []
    for tokens in windows:
        step = Step(0, [Chunk(tokens, 0, list(range(NUM_BLOCKS)), len(tokens))])
        runner.send(step)
        logits = runner.step(step).logits
        assert logits is not None
        rows.append(logits)
    return Found(rows, chosen)


def _noted(routed: Callable[[Tensor], tuple[Tensor, Tensor]], chosen: list[Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Return what a router returns for x [T, D], and keep which experts it chose."""
    shares, numbers = routed(x)
    chosen.append(numbers.sort(dim=-1).values)
    return shares, numbers


def errors(found: Found, exact: Found) -> tuple[float, float]:
    """Return the largest and the mean error of the logits."""
    moved = [(a - b).abs() for a, b in zip(found.logits, exact.logits, strict=True)]
    return max(m.max().item() for m in moved), sum(m.mean().item() for m in moved) / len(moved)


def print_quality(size: int, windows: list[list[int]], targets: list[Tensor]) -> None:
    """Print a row for each way on so many ranks; the first way is what the others are compared with."""
    exact = world(size, WAYS[0], DEMO, windows)
    for way in WAYS:
        found = exact if way is WAYS[0] else world(size, way, DEMO, windows)
        perplexity = math.exp(loss(found.logits, targets))
        change = 100 * (perplexity / math.exp(loss(exact.logits, targets)) - 1)
        worst, mean = errors(found, exact)
        print(f"| {size} | {way.name} | {perplexity:.4f} | {change:+.3f} % | {worst:.3f} | {mean:.5f} |", flush=True)


def print_flips(size: int, folder: Path, vocab: int) -> None:
    """Print how many choices of a random mixture's routers change, for each way on so many ranks."""
    draw = random.Random(0)
    windows = [[draw.randrange(vocab) for _ in range(LENGTH)] for _ in range(2)]
    exact = world(size, WAYS[0], folder, windows)
    for way in WAYS[1:]:
        found = world(size, way, folder, windows)
        pairs = list(zip(found.chosen, exact.chosen, strict=True))
        flips = sum(int((a != b).any(-1).sum()) for a, b in pairs)
        total = sum(len(a) for a, _ in pairs)
        worst, mean = errors(found, exact)
        print(f"| {size} | {way.name} | {flips} of {total} | {worst:.3f} | {mean:.5f} |", flush=True)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=16, help="windows of the text")
    parser.add_argument("--sizes", type=int, nargs="+", default=[2, 4])
    args = parser.parse_args()
    torch.set_num_threads(1)
    windows, targets = held_out(args.rows)
    print(
        f"{args.rows} windows of {LENGTH} tokens\n\n| ranks | sums | perplexity | change | worst logit | mean logit |"
    )
    print("|---|---|---|---|---|---|")
    for size in args.sizes:
        print_quality(size, windows, targets)
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
    from support.checkpoints import write_checkpoint

    print("\n| ranks | sums | routing flips | worst logit | mean logit |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as into:
        folder = write_checkpoint(Path(into) / "m", max_position_embeddings=2048, **MIXTURE, **WIDE)
        for size in args.sizes:
            print_flips(size, folder, 203)


if __name__ == "__main__":
    main()
