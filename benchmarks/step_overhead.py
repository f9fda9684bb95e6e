"""Print what a step costs rank 0 outside the forward pass, for one stream of the demo model.

    mpirun -n 4 python benchmarks/step_overhead.py    (or without mpirun: one rank)

Overhead is the time from the end of one forward pass to the begin of the next: sampling, answering, looking for
messages and notes, planning, sending the step.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path

from ollampi.launcher.assemble import communicator
from ollampi.mpiruntime.engine import END, Engine, StepTimes
from ollampi.mpiruntime.hosted import EngineSettings, Models
from ollampi.mpiruntime.inbox import Event, Local
from ollampi.mpiruntime.mpi import Mpi
from ollampi.mpiruntime.request import GenerateRequest, ModelRef, Sampling
from ollampi.mpiruntime.runner import Runner
from ollampi.mpiruntime.world import survey

COUNT = 600
DEMO = Path(__file__).resolve().parent.parent / "conf/models/demo"


class Stream(Local):
    """One client that asks once and leaves a note when its answer has ended."""

    def __init__(self, runner: Runner, sampling: Sampling) -> None:
        super().__init__()
        self.runner = runner
        request = GenerateRequest(ModelRef("demo:latest", str(DEMO)), list(range(10, 40)), sampling, max_tokens=COUNT)
        self.messages.put({"op": "generate", "id": 1, "request": request.to_wire()})

    def post(self, event: Event) -> None:
        """End the engine after the last event."""
        if event["kind"] != "tokens":
            self.runner.comm.notify(END)


def measure(runner: Runner, sampling: Sampling) -> tuple[list[float], list[float]]:
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

    models = Models(runner, EngineSettings(dtype="float32"))
    Engine(runner, models, Stream(runner, sampling), drain_timeout_s=1, observe=observe).run()
    overheads = [total - forward for total, forward in zip(totals, forwards, strict=True)]
    return overheads[10:], forwards[10:]


def main() -> None:
    """Print medians and 99th percentiles on rank 0."""
    comm = communicator()
    kinds = {"greedy": Sampling(temperature=0), "sampled (defaults)": Sampling(seed=1)}
    for name, sampling in kinds.items():
        runner = Runner(comm, survey(comm))
        if comm.rank:
            runner.follow()
            continue
        overheads, forwards = measure(runner, sampling)
        p99 = sorted(overheads)[int(0.99 * len(overheads))]
        print(
            f"{comm.size} ranks, {name}: overhead median {statistics.median(overheads) * 1e3:.3f} ms,"
            f" p99 {p99 * 1e3:.3f} ms; forward median {statistics.median(forwards) * 1e3:.3f} ms"
            f" ({len(overheads)} steps)",
            flush=True,
        )
    if isinstance(comm, Mpi):
        comm.finish()


if __name__ == "__main__":
    main()
