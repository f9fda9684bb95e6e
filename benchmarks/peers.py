"""Compare this runtime with llama.cpp and torch: the same weights, the same cores, in turns, in one run.

    python benchmarks/peers.py [--formats q8 q4 bf16] [--rows decode prefill streams] [--ranks 1 2 4] [--rounds 5]
                               [--tokens 128] [--skip llama.cpp torch] [--folder FOLDER] [key=value ...]

A random model of 1.04 billion weights (large_model.py) is made in FOLDER and exported to GGUF. Every runtime has a
process of its own, which is stopped until it is its turn; a round gives each runtime one turn of each row. Printed are
medians in tokens per second, and medians of the ratios within a round. Needs the peers extra, or --skip llama.cpp.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests"))

from contestant import Row  # noqa: E402
from gguf_export import export  # noqa: E402
from large_model import large_model  # noqa: E402
from read_bandwidth import ReadBandwidth  # noqa: E402
from support.servers import mpirun  # noqa: E402
from worker import Worker  # noqa: E402

QUANTIZE = {"q8": "q8", "q4": "q4", "bf16": "none"}
LLAMA, TORCH, MEMORY = "llama.cpp", "torch", "memory"

Figures = dict[tuple[str, str], list[float]]  # by row and contestant: one figure for each round


def rows(tokens: int) -> dict[str, Row]:
    """Return the rows of the tables by their option."""
    return {
        "decode": Row(f"decode, 1 stream, {tokens} tokens", 1, 16, tokens),
        "prefill": Row("prefill, 512 tokens", 1, 512, 1),
        "streams": Row("decode, 16 streams", 16, 16, max(2, tokens // 2)),
    }


def ours(ranks: int, cores: int) -> str:
    """Return the name of this runtime in so many ranks."""
    threads = max(1, cores // ranks)
    return f"{ranks} rank{'s' * (ranks > 1)} x {threads}"


def starters(kind: str, model: Path, args: argparse.Namespace) -> dict[str, Callable[[], Worker]]:
    """Return how each contestant is started, in the order of their turns."""
    cores, found = len(os.sched_getaffinity(0)), {}

    def start(name: str, ranks: int, *program: str) -> Callable[[], Worker]:
        line = [sys.executable, *program]
        if ranks > 1:
            return lambda: Worker(name, *mpirun(ranks, line))
        return lambda: Worker(name, line)

    for ranks in args.ranks:
        name = ours(ranks, cores)
        program = str(HERE / "peer_ollampi.py"), str(model), f"quantize={QUANTIZE[kind]}", *args.settings
        found[name] = start(name, ranks, *program)
    if LLAMA not in args.skip:
        path = export(model, kind, args.folder)
        found[LLAMA] = start(LLAMA, 1, str(HERE / "peer_llama.py"), str(path), str(cores))
    if TORCH not in args.skip:
        found[TORCH] = start(TORCH, 1, str(HERE / "peer_torch.py"), str(model), QUANTIZE[kind], str(cores))
    return found


def take_turns(
    workers: dict[str, Worker], wanted: list[Row], rounds: int, memory: ReadBandwidth, progress: Callable[[str], None]
) -> Figures:
    """Return what each worker did in each row and round, and the bytes per second that memory was read with.

    A first round only warms up.
    """
    figures: Figures = {}
    for number in range(rounds + 1):
        for row in wanted:
            for name, worker in workers.items():
                found = worker.measure(row, seed=number)
                progress(f"round {number} of {rounds}, {row.name}, {name}: {found:.1f}")
                if number:
                    figures.setdefault((row.name, name), []).append(found)
        if number:
            figures.setdefault((MEMORY, MEMORY), []).append(memory.measure())
    return figures


def ratio(figures: Figures, row: str, name: str, other: str) -> str:
    """Return the median of how many times as fast as another one a contestant was in the same round."""
    both = zip(figures[row, name], figures[row, other], strict=True)
    return f"{median(a / b for a, b in both):.2f}"


def pairs(names: list[str], ranks: list[str]) -> list[tuple[str, str]]:
    """Return who is compared with whom: ranks with fewer ranks, and every number of ranks with the peers."""
    peers = [name for name in names if name not in ranks]
    return [*zip(ranks[1:], ranks, strict=False), *((mine, peer) for peer in peers for mine in ranks)]


def table(figures: Figures, wanted: list[Row], names: list[str], ranks: list[str]) -> str:
    """Return the medians in tokens per second, and below them the ratios."""
    lines = [["tokens/s", *(row.name for row in wanted)], ["---"] * (1 + len(wanted))]
    lines += [[name, *(f"{median(figures[row.name, name]):.1f}" for row in wanted)] for name in names]
    for name, other in pairs(names, ranks):
        lines.append([f"{name} / {other}", *(ratio(figures, row.name, name, other) for row in wanted)])
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def reading(figures: Figures, row: Row, workers: dict[str, Worker], ranks: list[str]) -> str:
    """Return how fast decoding reads weights beside what the plain loop reads."""
    loop = figures[MEMORY, MEMORY]
    lines = [f"a plain loop reads {median(loop) / 1e9:.1f} GB/s"]
    for name in ranks:
        read = [rate * workers[name].facts["read_bytes"] for rate in figures[row.name, name]]
        share = median(a / b for a, b in zip(read, loop, strict=True))
        lines.append(f"{name} reads weights with {median(read) / 1e9:.1f} GB/s, {100 * share:.0f} % of that")
    return "\n".join(lines)


def compare(kind: str, model: Path, args: argparse.Namespace, memory: ReadBandwidth) -> None:
    """Print the tables of one format."""
    with ExitStack() as stack:
        workers: dict[str, Worker] = {}
        for name, start in starters(kind, model, args).items():
            workers[name] = start()
            stack.callback(workers[name].close)
        ranks = [name for name in workers if name not in (LLAMA, TORCH)]
        offered = rows(args.tokens)
        wanted = [offered[name] for name in args.rows]
        figures = take_turns(workers, wanted, args.rounds, memory, lambda line: print(line, file=sys.stderr))
        print(f"\n{kind}, {args.rounds} rounds\n{table(figures, wanted, list(workers), ranks)}", flush=True)
        if "decode" in args.rows:
            print(reading(figures, offered["decode"], workers, ranks), flush=True)


def machine() -> str:
    """Return what the figures were measured on."""
    fields = dict(line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line)
    named = {key.strip(): value.strip() for key, value in fields.items()}
    return f"{named.get('model name', 'unknown CPU')}, {len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]}"


def main() -> None:
    """Compare what the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--formats", nargs="+", choices=QUANTIZE, default=list(QUANTIZE))
    parser.add_argument("--rows", nargs="+", choices=rows(2), default=list(rows(2)))
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=128, help="of one stream; 16 streams have half as many each")
    parser.add_argument("--skip", nargs="+", choices=[LLAMA, TORCH], default=[])
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "ollampi-peers")
    parser.add_argument("settings", nargs="*", help="of this runtime, such as threads=1")
    args = parser.parse_args()
    print(machine(), flush=True)
    model = large_model(args.folder)
    memory = ReadBandwidth()
    for kind in args.formats:
        if LLAMA not in args.skip:
            subprocess.run([sys.executable, HERE / "peer_quality.py", "--check", model, kind, args.folder], check=True)
        compare(kind, model, args, memory)


if __name__ == "__main__":
    main()
