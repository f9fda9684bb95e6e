"""Choose how the ranks exchange tensors: through MPI, or through shared memory where all are on one host."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from ollampi.mpiruntime.communicator import Communicator
from ollampi.mpiruntime.errors import ConfigError, WorldError
from ollampi.mpiruntime.shared_memory import SHM, share_memory
from ollampi.mpiruntime.world import RankFacts

SMALL_BYTES, LARGE_BYTES = 8 << 10, 1 << 20  # one token of width 2048; 128 of them
_ROUNDS = 4
_CALLS = {SMALL_BYTES: 10, LARGE_BYTES: 1}  # in each round
_SLOWER = 1.2  # how many times as long shared memory may take for large messages and still count as no slower


@dataclass(frozen=True)
class Exchange:
    """The communicator that was chosen, and in words which and why; no words for a world of one rank."""

    comm: Communicator
    told: str


def choose_exchange(
    comm: Communicator, facts: list[RankFacts], wanted: str, crowded: bool, folder: Path = SHM
) -> Exchange:
    """Return the exchange that is faster ("auto") or wanted ("shared", "mpi"); collective, the same on all ranks.

    crowded: whether the threads of the ranks outnumber their cores. Raise ConfigError where "shared" cannot be had.
    """
    if comm.size == 1:
        return Exchange(comm, "")
    if wanted == "mpi":
        return Exchange(comm, "MPI, as asked for")
    try:
        hosts = len({fact.host for fact in facts})
        if hosts > 1:
            raise WorldError(f"the ranks are on {hosts} hosts")
        shared = share_memory(comm, crowded, folder)
    except WorldError as e:
        if wanted == "shared":
            raise ConfigError(f"exchange=shared cannot be had: {e}; use exchange=auto or exchange=mpi") from e
        return Exchange(comm, f"MPI, since there is no shared memory: {e}")
    ours, theirs = measure([shared, comm], _CALLS)
    wins = ours[SMALL_BYTES] < theirs[SMALL_BYTES] and ours[LARGE_BYTES] < _SLOWER * theirs[LARGE_BYTES]
    if wanted == "shared":
        return Exchange(shared, f"shared memory, as asked for: {_figures(ours)} (MPI: {_figures(theirs)})")
    if wins:
        return Exchange(shared, f"shared memory: {_figures(ours)} (MPI: {_figures(theirs)})")
    return Exchange(comm, f"MPI: {_figures(theirs)} (shared memory: {_figures(ours)}; it must win both)")


def measure(comms: list[Communicator], calls: dict[int, int]) -> list[dict[int, float]]:
    """Return the seconds of one all-reduce for each size in bytes, through each communicator; collective.

    They are measured in turns. A rank counts with its best, which no pause of a busy machine touches, and the slowest
    rank counts, so that all ranks know the same figures.
    """
    seconds: list[dict[int, list[float]]] = [{size: [] for size in calls} for _ in comms]
    for size, count in calls.items():
        x = torch.from_numpy(np.zeros(size // 4, np.float32))  # torch.zeros would start the threads too early
        for round_ in range(_ROUNDS + 1):
            for comm, times in zip(comms, seconds, strict=True):
                found = [_timed(comm, x) for _ in range(count)]
                times[size] += found if round_ else []  # in the first one memory is touched for the first time
    mine = [{size: min(times) for size, times in each.items()} for each in seconds]
    told = [json.loads(text) for text in comms[0].collect(json.dumps(mine).encode())]
    return [{size: max(rank[i][str(size)] for rank in told) for size in calls} for i in range(len(comms))]


def _timed(comm: Communicator, x: Tensor) -> float:
    """Return the seconds of one all-reduce of x [...]; collective."""
    began = perf_counter()
    comm.all_reduce(x)
    return perf_counter() - began


def _figures(seconds: dict[int, float]) -> str:
    """Return the times in words, such as "8 KiB in 3.1 us and 1 MiB in 180 us"."""
    names = {SMALL_BYTES: "8 KiB", LARGE_BYTES: "1 MiB"}
    return " and ".join(f"{name} in {_micros(seconds[size])} us" for size, name in names.items())


def _micros(seconds: float) -> str:
    """Return a time in microseconds with a digit behind the point where it is short."""
    return f"{seconds * 1e6:.{0 if seconds >= 1e-4 else 1}f}"
