"""Measure how long sums take in different ways, on all ranks alike."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from ollampi.mpiruntime.communicator import Communicator
from ollampi.mpiruntime.exchange_plan import Choice

Sum = Callable[[Tensor], Tensor]
Found = Mapping[Choice, float]
_ROUNDS, _FEWEST_ROUNDS = 8, 2
_ROW, _ROW_BYTES = 8, 512 << 10  # so many sums are timed in a row, fewer where they are longer than that together
_BUDGET_S = 0.2  # for the rounds of a size; the first calls, which say what they take, are beside it
_LONG_S = 0.2  # a call that takes so long needs no second one


def _nothing(size: int, found: Found) -> set[Choice]:
    """Return no way."""
    return set()


def measure(
    sums: Mapping[Choice, Sum],
    comm: Communicator,
    sizes: Sequence[int],
    hopeless: Callable[[int, Found], set[Choice]] = _nothing,
) -> dict[Choice, dict[int, float]]:
    """Return the seconds of a sum of each size in bytes, ascending, in each way; collective over comm.

    The ways are tried in turns. A rank counts with its best, which no pause of a busy machine touches, and the slowest
    rank counts, so that all ranks know the same figures. What is hopeless, by what all ways took for a size, is not
    tried with larger ones.
    """
    figures: dict[Choice, dict[int, float]] = {choice: {} for choice in sums}
    trying = list(sums)
    for size in sizes:
        found = _measured({choice: sums[choice] for choice in trying}, comm, size)
        for choice, seconds in found.items():
            figures[choice][size] = seconds
        given_up = hopeless(size, found)
        trying = [choice for choice in trying if choice not in given_up]
    return figures


def _measured(sums: Mapping[Choice, Sum], comm: Communicator, size: int) -> dict[Choice, float]:
    """Return the seconds of a sum of one size in each way; collective.

    Of small sums several are made in a row. Alone, a sum looks too fast on a rank that comes late and finds what the
    others have sent: then it takes no trip. In a row each sum waits for one that was sent after the sum before.
    """
    calls = max(1, min(_ROW, _ROW_BYTES // size))
    x = torch.from_numpy(np.zeros(size // 4, np.float32))  # torch.zeros would start the threads too early
    first = agreed(comm, [_timed(choice, sums[choice], x) for choice in sums])  # memory is touched for the first time
    times = [[s] if s >= _LONG_S else [] for s in first]
    short = [(seconds, sum_) for seconds, sum_ in zip(times, sums.items(), strict=True) if not seconds]
    for _ in range(max(_FEWEST_ROUNDS, min(_ROUNDS, int(_BUDGET_S / max(calls * sum(first), 1e-6))))):
        for seconds, (choice, sum_) in short:
            seconds.append(_timed(choice, sum_, x, calls))
    return dict(zip(sums, agreed(comm, [min(seconds) for seconds in times]), strict=True))


def agreed(comm: Communicator, seconds: Sequence[float]) -> list[float]:
    """Return the times of the slowest rank, each by itself; collective."""
    told = [json.loads(text) for text in comm.collect(json.dumps(list(seconds)).encode())]
    return [max(times) for times in zip(*told, strict=True)]


def _timed(choice: Choice, sum_: Sum, x: Tensor, calls: int = 1) -> float:
    """Return the seconds of one sum of x [n], of so many in a row; collective."""
    began = perf_counter()
    for _ in range(calls):
        sum_(x)
    return (perf_counter() - began) / calls


def micros(seconds: float) -> str:
    """Return a time in microseconds with a digit behind the point where it is short."""
    return f"{seconds * 1e6:.{0 if seconds >= 1e-4 else 1}f}"
