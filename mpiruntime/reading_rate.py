"""Measure at the start how fast ranks read weights: one of each host alone, and all of them together."""

from __future__ import annotations

import json
from time import perf_counter

import torch
import torch.nn.functional as F

from ollampi.kernels import dense, native, pages
from ollampi.mpiruntime.communicator import Communicator
from ollampi.mpiruntime.cost_fit import Fit
from ollampi.mpiruntime.devices import CPU
from ollampi.mpiruntime.hierarchical import by_host
from ollampi.mpiruntime.token_cost import Rates, SumTimes
from ollampi.mpiruntime.world import RankFacts

_WIDTH, _ROWS = 4096, 8192  # 64 MiB in bf16, more than a core's own caches hold
_ROUNDS = 3


def measure_rates(comm: Communicator, facts: list[RankFacts], timed: SumTimes | None, fitted: Fit | None) -> Rates:
    """Return what is known of memory, sums and steps, which strategies weigh; collective.

    timed: what sums were measured to take, in the host of all ranks or between several; fitted: the constants that were
    fitted on this machine before. Strategies ask on rank 0, so its own count. GPUs have none.
    """
    alone, host = measure_reading(comm, facts)
    near, far = (timed, None) if len(by_host(facts)) == 1 else (None, timed)
    if fitted is None or any(fact.device != CPU for fact in facts):
        return Rates(alone, host, near, far)
    return Rates(alone, host, near, far, fitted.constants, fitted=True)


def measure_reading(comm: Communicator, facts: list[RankFacts]) -> tuple[float | None, float | None]:
    """Return the bytes per second of a rank alone, and of all ranks of a host together; collective, on all alike.

    The slowest host counts, of each rank its best round. A token is multiplied by weights in bf16, as a step does.
    Nothing is measured for one rank, which has no choice, and where any computes on a GPU.
    """
    if comm.size == 1 or any(fact.device != CPU for fact in facts):
        return None, None
    hosts = by_host(facts)
    weights = pages.empty((_ROWS, _WIDTH), torch.bfloat16).fill_(0.01)
    x = torch.ones(1, _WIDTH)
    first = any(ranks[0] == comm.rank for ranks in hosts)
    comm.collect(b"")
    alone = _rate(x, weights) if first else 0.0
    rates = [
        tuple(json.loads(told)) for told in comm.collect(json.dumps([alone, _together(comm, x, weights)]).encode())
    ]
    return min(rates[ranks[0]][0] for ranks in hosts), min(sum(rates[rank][1] for rank in ranks) for ranks in hosts)


def _together(comm: Communicator, x: torch.Tensor, weights: torch.Tensor) -> float:
    """Return what this rank reads in a second while all do; collective."""
    comm.collect(b"")
    return _rate(x, weights)


def _rate(x: torch.Tensor, weights: torch.Tensor) -> float:
    """Return the bytes of weights [n, D] that are read in a second, multiplied by x [1, D]."""
    best = float("inf")
    for _ in range(_ROUNDS):
        began = perf_counter()
        if native.library() is None:
            F.linear(x.to(weights.dtype), weights)
        else:
            dense.matmul(x, weights)
        best = min(best, perf_counter() - began)
    return weights.numel() * weights.element_size() / best
