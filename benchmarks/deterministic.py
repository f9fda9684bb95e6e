"""Print what deterministic=true costs: tokens per second of prompts and of answers, with and without it.

    python benchmarks/deterministic.py [--sizes 1 2 4] [--streams 1 16] [--model FOLDER] [--dtype float32]

Forward passes alone, without sampling and HTTP: a prompt in pieces of 512 tokens, then answers that start after 64
tokens each. The two kinds take turns, so that other work on the machine slows both.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from ollampi.launcher.assemble import communicator
from ollampi.mpiruntime.mpi import Mpi
from ollampi.mpiruntime.runner import Runner
from ollampi.mpiruntime.step import Chunk, Load, Step, Stop
from ollampi.mpiruntime.world import survey

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "conf/models/demo"
BLOCK, PIECE, PROMPT, BEGIN, ANSWER, TURNS = 16, 512, 1024, 64, 64, 5


def blocks(stream: int, length: int) -> list[int]:
    """Return the block table of a stream with `length` positions."""
    first = stream * -(-PROMPT // BLOCK)
    return list(range(first, first + -(-length // BLOCK)))


def forward(runner: Runner, model: int, chunks: list[Chunk]) -> None:
    """Make one step."""
    step = Step(model, chunks)
    runner.send(step)
    runner.step(step)


def prefill_s(runner: Runner, model: int) -> float:
    """Return the seconds of one prompt of PROMPT tokens."""
    began = time.perf_counter()
    for start in range(0, PROMPT, PIECE):
        tokens = [(7 * p) % 1000 for p in range(start, start + PIECE)]
        forward(runner, model, [Chunk(tokens, start, blocks(0, start + PIECE), int(start + PIECE == PROMPT))])
    return time.perf_counter() - began


def decode_s(runner: Runner, model: int, streams: int) -> float:
    """Return the seconds of ANSWER steps with one token for each stream."""
    began = time.perf_counter()
    for p in range(BEGIN, BEGIN + ANSWER):
        forward(runner, model, [Chunk([p], p, blocks(stream, p + 1), 1) for stream in range(streams)])
    return time.perf_counter() - began


def report(name: str, count: int, plain: list[float], exact: list[float]) -> None:
    """Print tokens per second of both kinds from the fastest of their turns."""
    print(
        f"  {name}: {count / min(plain):8.0f} tokens/s, deterministic {count / min(exact):8.0f}:"
        f" {min(exact) / min(plain):.2f} times as long",
        flush=True,
    )


def run_rank(folder: Path, dtype: str, streams: list[int]) -> None:
    """Measure on all ranks; rank 0 prints."""
    comm = communicator()
    runner = Runner(comm, survey(comm))
    if comm.rank:
        runner.follow()
    else:
        num_blocks = max(streams) * -(-PROMPT // BLOCK)
        for model in (0, 1):
            runner.lead_load(Load(model, str(folder), dtype, PROMPT, num_blocks, BLOCK, deterministic=bool(model)))
        print(f"{comm.size} ranks, {folder.name}, {dtype}")
        turns = [(prefill_s(runner, 0), prefill_s(runner, 1)) for _ in range(TURNS)]
        report(f"prompt of {PROMPT} tokens", PROMPT, [a for a, _ in turns], [b for _, b in turns])
        for count in streams:
            turns = [(decode_s(runner, 0, count), decode_s(runner, 1, count)) for _ in range(TURNS)]
            report(f"answers, {count:3d} streams", count * ANSWER, [a for a, _ in turns], [b for _, b in turns])
        runner.lead(Stop())
    if isinstance(comm, Mpi):
        comm.finish()


def main() -> None:
    """Measure every world size in a job of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--model", type=Path, default=DEMO)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--rank", action="store_true", help="run as one rank; used by the above")
    args = parser.parse_args()
    if args.rank:
        run_rank(args.model, args.dtype, args.streams)
        return
    sys.path.insert(0, str(ROOT / "tests"))
    from support.servers import mpirun

    for size in args.sizes:
        same = ["--model", str(args.model), "--dtype", args.dtype, "--streams", *map(str, args.streams)]
        line, env = mpirun(size, [sys.executable, __file__, "--rank", *same])
        subprocess.run(line, env=env, check=True)


if __name__ == "__main__":
    main()
