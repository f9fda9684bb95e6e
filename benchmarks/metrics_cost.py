"""Print what counting costs: microseconds for each exchange, step and token, without and with a trace.

    python benchmarks/metrics_cost.py

Times are of this process's CPU, so other work on the machine disturbs them little.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch

from ollampi.mpiruntime.communicator import Single
from ollampi.mpiruntime.inside import InsideView
from ollampi.mpiruntime.meters import ModelMeter
from ollampi.mpiruntime.metrics import ModelCounts, RequestMeter, StepCounts
from ollampi.mpiruntime.stepper import StepTimes
from ollampi.mpiruntime.trace import Trace

TIMES = 20_000
MARKS = StepTimes(0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)


def cost_us(work: Callable[[int], object]) -> float:
    """Return the microseconds of CPU time of one call, the least of five rounds."""
    rounds = []
    for _ in range(5):
        began = time.process_time()
        for i in range(TIMES):
            work(i)
        rounds.append((time.process_time() - began) / TIMES * 1e6)
    return min(rounds)


def inside_view(trace: Trace | None) -> tuple[InsideView, Any]:
    """Return an inside view and a model that are just enough for a step."""
    queues = SimpleNamespace(running=[1], waiting=[])
    model = SimpleNamespace(counts=ModelCounts(), ref=SimpleNamespace(name="demo:latest"), scheduler=queues)
    return InsideView(cast(Any, SimpleNamespace(trace=trace)), cast(Any, None), lambda times: None), model


def main() -> None:
    """Measure each part alone."""
    x = torch.zeros(1, 256)
    plain = Single()
    bare = cost_us(lambda i: plain.all_reduce(x))
    for name, trace in (("without a trace", None), ("with a trace", Trace(Path("unused")))):
        meter = ModelMeter("demo:latest", StepCounts(), plain, trace, plain)
        exchange = cost_us(lambda i, comm=meter.comm: comm.all_reduce(x)) - bare  # type: ignore[misc]
        step = cost_us(lambda i, meter=meter: meter.step(1, 0.0))  # type: ignore[misc]
        inside, model = inside_view(trace)
        root = cost_us(lambda i, inside=inside, model=model: inside.step(model, MARKS))  # type: ignore[misc]
        print(f"{name}: exchange {exchange:.2f} us, step on every rank {step:.2f} us, on rank 0 also {root:.2f} us")
    counts = ModelCounts()
    request = RequestMeter(counts, 1, 0.0, counts.of_replica([0]))
    print(f"token {cost_us(request.advance):.2f} us")


if __name__ == "__main__":
    main()
