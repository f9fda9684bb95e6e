"""Print what a step costs rank 0 outside the forward pass, for streams of the demo model.

    python benchmarks/step_overhead.py [--sizes 1 2 4] [--streams 1 16 128]

Overhead is the time from the end of one forward pass to the begin of the next: sampling, answering, looking for
messages and notes, planning, sending the step.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

from ollampi.launcher.assemble import communicator
from ollampi.mpiruntime.ending import END
from ollampi.mpiruntime.engine import Engine
from ollampi.mpiruntime.engine_settings import EngineSettings
from ollampi.mpiruntime.flight import StepTimes
from ollampi.mpiruntime.hosted import Models
from ollampi.mpiruntime.inbox import Event, Local
from ollampi.mpiruntime.mpi import Mpi
from ollampi.mpiruntime.request import GenerateRequest, ModelRef, Sampling
from ollampi.mpiruntime.runner import Runner
from ollampi.mpiruntime.world import survey

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "conf/models/demo"
KINDS = {"greedy": Sampling(temperature=0), "sampled (defaults)": Sampling(seed=1)}
WARM_UP = 10


class Streams(Local):
    """One client that asks for several long answers at once and leaves a note when the first of them ends."""

    def __init__(self, runner: Runner, sampling: Sampling, streams: int) -> None:
        super().__init__()
        self.runner = runner
        for number in range(streams):
            prompt = list(range(10 + number, 40 + number))
            request = GenerateRequest(ModelRef("demo:latest", str(DEMO)), prompt, sampling, max_tokens=300)
            self.messages.put({"op": "generate", "id": number, "request": request.to_wire()})

    def post(self, event: Event) -> None:
        """End the engine after the last event of an answer."""
        if event["kind"] != "tokens":
            self.runner.comm.notify(END)


def measure(runner: Runner, sampling: Sampling, streams: int) -> tuple[list[float], list[float]]:
    """Return the seconds of overhead and of the forward pass per step."""
    totals: list[float] = []
    forwards: list[float] = []
    last = 0.0

    def observe(times: StepTimes) -> None:
        nonlocal last
        now = time.perf_counter()
        totals.append(now - last)
        forwards.append(times.forward_s)
        last = now

    settings = EngineSettings(dtype="float32", cache_tokens=65536, max_step_tokens=4096, max_drafts=0)
    Engine(
        runner, Models(runner, settings), Streams(runner, sampling, streams), drain_timeout_s=1, observe=observe
    ).run()
    overheads = [total - forward for total, forward in zip(totals, forwards, strict=True)]
    return overheads[WARM_UP:], forwards[WARM_UP:]


def run_rank(streams: list[int]) -> None:
    """Print medians and 99th percentiles on rank 0."""
    comm = communicator()
    for count in streams:
        for name, sampling in KINDS.items():
            runner = Runner(comm, survey(comm))
            if comm.rank:
                runner.follow()
                continue
            overheads, forwards = measure(runner, sampling, count)
            p99 = sorted(overheads)[int(0.99 * len(overheads))]
            print(
                f"{comm.size} ranks, {count} streams, {name}: overhead median {statistics.median(overheads) * 1e3:.3f}"
                f" ms, p99 {p99 * 1e3:.3f} ms; forward median {statistics.median(forwards) * 1e3:.3f} ms"
                f" ({len(overheads)} steps)",
                flush=True,
            )
    if isinstance(comm, Mpi):
        comm.finish()


def main() -> None:
    """Measure every world size in a job of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 16, 128])
    parser.add_argument("--rank", action="store_true", help="run as one rank; used by the above")
    args = parser.parse_args()
    if args.rank:
        run_rank(args.streams)
        return
    sys.path.insert(0, str(ROOT / "tests"))
    from support.servers import mpirun

    for size in args.sizes:
        program = [sys.executable, __file__, "--rank", "--streams", *map(str, args.streams)]
        line, env = mpirun(size, program)
        subprocess.run(line, env=env, check=True)


if __name__ == "__main__":
    main()
