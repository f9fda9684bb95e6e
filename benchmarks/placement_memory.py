"""Print what placements hold, and at which rate a model is computed that is twice as large as the memory.

    python benchmarks/placement_memory.py shards [--layers 6] [--folder /fast/disk]
    python benchmarks/placement_memory.py limit [--memory 1GiB] [--times 2] [--rounds 5] [--folder /fast/disk]

shards: a random model in bf16, placed on 4 ranks: what each holds, by its own report and by the growth of its PSS once
its cache is full, beside a quarter of the matrices and of the cache, and the whole norms, which each rank has.

limit: one rank whose process may take no more than the given memory (ulimit -d), with strategy=memory-optimized and a
model whose layers in q4 take `times` as much. Tokens, and plain reads of the file of layers past the kernel's cache in
pieces of the same size, take turns; printed is the rate of reading in steps beside that of the plain reads. The bytes
are those that the kernel counts as read from the device (/proc/self/io), so nothing comes from a cache.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from stream import BLOCK, HEADS, KV_HEADS, MLP, VOCAB, WIDTH, disk_rate, write_model

from ollampi.launcher.assemble import communicator, runner
from ollampi.launcher.config import compose_config
from ollampi.launcher.kinds import Bytes
from ollampi.mpiruntime.cluster import Wish
from ollampi.mpiruntime.errors import ModelError
from ollampi.mpiruntime.hosted import Models
from ollampi.mpiruntime.hosted_model import HostedModel
from ollampi.mpiruntime.mpi import Mpi
from ollampi.mpiruntime.request import ModelRef
from ollampi.mpiruntime.runner import Runner
from ollampi.mpiruntime.step import Chunk, Step, Stop

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "conf/models/demo"
CONTEXT, SHORT, RANKS, TOKENS = 512, 64, 4, 3  # SHORT: the context where memory is scarce
LAYER_WEIGHTS = 2 * WIDTH * WIDTH + 2 * WIDTH * WIDTH // HEADS * KV_HEADS + 3 * WIDTH * MLP
Q4_LAYER = LAYER_WEIGHTS * 4.5 / 8  # bytes


def kernel_figure(pid: int | str, file: str, name: str) -> int:
    """Return the number behind a name in a file of a process of this host."""
    return int(Path(f"/proc/{pid}/{file}").read_text().split(f"{name}:")[1].split()[0])


def compute(made: Runner, hosted: HostedModel, start: int, count: int) -> None:
    """Compute a step of so many tokens from a position on."""
    blocks = list(range(-(-(start + count) // BLOCK)))
    step = Step(hosted.number, [Chunk([7] * count, start, blocks, 1)])
    made.send(step)
    made.step(step)


def fill(made: Runner, hosted: HostedModel) -> None:
    """Let a text take the whole context."""
    for start in range(0, CONTEXT, 64):
        compute(made, hosted, start, 64)


def shards(made: Runner, models: Models, pids: list[int], folder: Path, layers: int) -> None:
    """Print what each of the ranks holds. Rank 0 only."""
    small = models.place(ModelRef("demo", str(DEMO)), Wish(shards=RANKS)).replicas[0]
    for start in range(0, 256, 64):
        compute(made, small, start, 64)  # libraries and threads are there then
    models.unload_when_idle("demo")
    before = [kernel_figure(pid, "smaps_rollup", "Pss") << 10 for pid in pids]
    hosted = models.place(ModelRef("m", str(folder)), Wish(shards=RANKS)).replicas[0]
    fill(made, hosted)
    matrices = 2 * (layers * LAYER_WEIGHTS + 2 * VOCAB * WIDTH)
    norms = 2 * (2 * layers + 1) * WIDTH
    cache = 2 * 2 * layers * CONTEXT * WIDTH // HEADS * KV_HEADS
    wanted = (matrices + cache) / RANKS + norms
    print(f"bf16, {matrices / 1e6:.0f} MB of matrices, {cache / 1e6:.0f} MB of cache: {wanted / 1e6:.1f} MB for each")
    for report, pid, held in zip(hosted.reports, pids, before, strict=True):
        grown = (kernel_figure(pid, "smaps_rollup", "Pss") << 10) - held
        print(
            f"rank {report.rank}: reports {report.held_bytes / 1e6:.1f} MB ({report.held_bytes / wanted - 1:+.1%}),"
            f" PSS grew by {grown / 1e6:.1f} MB ({grown / wanted - 1:+.1%})",
            flush=True,
        )


def limit(made: Runner, models: Models, args: argparse.Namespace, folder: Path, cache: Path) -> None:
    """Print at which rate a model is read in steps that is larger than the memory."""
    resource.setrlimit(resource.RLIMIT_DATA, (args.memory, args.memory))
    print(f"{kernel_figure('self', 'status', 'VmData') << 10} of {args.memory} bytes are taken before the load")
    try:
        models.place(ModelRef("m", str(folder)), Wish(shards=1))
    except ModelError as e:
        print(f"without: {str(e).replace(str(folder), 'm')}")
    placed = models.place(ModelRef("m", str(folder)), Wish(strategy="memory-optimized"))
    hosted = placed.replicas[0]
    (report,) = hosted.reports
    print(f"memory-optimized: {placed.layout.why}; {hosted.num_streamed} of {hosted.config.num_layers} layers streamed")
    print(f"{report.held_bytes / 1e6:.0f} MB held, {report.step_bytes / 1e6:.0f} MB read in a step, limit", end=" ")
    print(f"{args.memory / 1e6:.0f} MB, {kernel_figure('self', 'status', 'VmData') / 1e3:.0f} MB taken in all")
    for start in range(2):
        compute(made, hosted, start, 1)  # the first reading checks
    (path,) = cache.glob("*-layers-*")
    run = path.stat().st_size // hosted.config.num_layers // 4096 * 4096
    ratios = []
    for number in range(args.rounds):
        plain = disk_rate(path, run)
        before, began = kernel_figure("self", "io", "read_bytes"), time.perf_counter()
        for token in range(TOKENS):
            compute(made, hosted, 2 + number * TOKENS + token, 1)
        seconds, read = time.perf_counter() - began, kernel_figure("self", "io", "read_bytes") - before
        again = disk_rate(path, run)
        rate, disk = TOKENS * report.step_bytes / seconds, 2 / (1 / plain + 1 / again)
        ratios.append(rate / disk)
        print(
            f"{TOKENS / seconds:.3f} tokens/s, {rate / 1e9:.3f} GB/s of {disk / 1e9:.3f} ({ratios[-1]:.0%}); the device"
            f" gave {read / (TOKENS * report.step_bytes):.0%} of the bytes needed",
            flush=True,
        )
    print(f"median {statistics.median(ratios):.0%} of the disk's rate")


def run_rank(args: argparse.Namespace) -> None:
    """Do what one rank does."""
    comm = communicator()
    folder, cache = Path(args.rank, "m"), Path(args.rank, "c")
    context = CONTEXT if args.what == "shards" else SHORT
    sizes = [f"engine.context_length={context}", f"engine.cache_tokens={context}", f"cache={cache}"]
    sizes += ["threads=1"]  # of which reading leaves most idle; others of a shared machine hold up a second one
    config = compose_config(sizes, {})
    made, told = runner(comm, config)
    pids = [int(pid) for pid in comm.collect(str(os.getpid()).encode())]
    if comm.rank:
        made.follow()
    else:
        print(told, flush=True)
        models = Models(made, config.engine, cluster=config.cluster)
        work: Callable[[], None] = {
            "shards": lambda: shards(made, models, pids, folder, args.layers),
            "limit": lambda: limit(made, models, args, folder, cache),
        }[args.what]
        work()
        made.lead(Stop())
    if isinstance(comm, Mpi):
        comm.finish()


def main() -> None:
    """Run what the arguments ask for in a job of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("shards", "limit"))
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--memory", type=Bytes().parse, default=1 << 30)
    parser.add_argument("--times", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", default=None)
    parser.add_argument("--rank", default="", help="the folder of this run; used by the ranks")
    args = parser.parse_args()
    if args.rank:
        run_rank(args)
        return
    sys.path.insert(0, str(ROOT / "tests"))
    from support.servers import mpirun

    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        Path(folder, "m").mkdir()
        layers = args.layers if args.what == "shards" else round(args.times * args.memory / Q4_LAYER)
        write_model(Path(folder, "m"), layers, alike=True)
        os.sync()  # what is written late would be in the way of what is read
        program = [sys.executable, __file__, *sys.argv[1:], "--rank", folder]
        line, env = mpirun(RANKS, program) if args.what == "shards" else (program, dict(os.environ))
        sys.exit(subprocess.run(line, env=env).returncode)


if __name__ == "__main__":
    main()
