"""Spoil the weights and sums of single ranks, as bad memory and bad processors do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ollampi.kernels.linear import Matrix
from ollampi.kernels.quantised import Quantised
from ollampi.mpiruntime.communicator import Around, Communicator
from ollampi.mpiruntime.decoder import Decoder
from ollampi.mpiruntime.runner import Runner
from ollampi.mpiruntime.self_test import Finding, judged
from ollampi.mpiruntime.step import Examine
from ollampi.mpiruntime.world import survey
from support.worlds import load_here, load_message

LONG_S = 60.0  # enough to look at all weights of a small model
Faults = list[list[str]]


def examined(
    comm: Communicator, folder: Path, spoil: Callable[[Decoder], None] | None, rank: int, **fields: Any
) -> tuple[Faults, Faults]:
    """Return the faults before and after `spoil` was called with the decoder of one rank; collective."""
    runner = Runner(comm, survey(comm))
    load_here(runner, load_message(folder, **fields))
    before = faults_of(runner)
    if comm.rank == rank and spoil is not None:
        spoil(decoder_of(runner))
    return before, faults_of(runner)


def faults_of(runner: Runner) -> Faults:
    """Return the faults of all ranks once each has looked at all its weights, twice; collective."""
    runner.examine(Examine(LONG_S))
    return judged(runner.examine(Examine(LONG_S)))


def findings_of(runner: Runner, budget_s: float) -> list[Finding]:
    """Return what all ranks found in one test; collective."""
    return runner.examine(Examine(budget_s))


def decoder_of(runner: Runner) -> Decoder:
    """Return the decoder of the one model that is loaded."""
    (model,) = runner._models.values()
    return model.decoder


def raw_bytes(matrix: Matrix) -> Iterator[Tensor]:
    """Yield the bytes of a matrix, in place."""
    for tensor in (matrix.weights, matrix.scales) if isinstance(matrix, Quantised) else (matrix,):
        if tensor.numel():
            yield tensor.view(-1).view(torch.uint8)


def flip(raw: Tensor, at: int, bit: int = 0) -> None:
    """Flip one bit of some bytes, in place."""
    raw[at] ^= 1 << bit


class Spoilt(Around):
    """The communicator `inner` with a rank that adds, or gets, something else than it should."""

    def __init__(
        self, inner: Communicator, before: Callable[[Tensor], Tensor], behind: Callable[[Tensor], Tensor]
    ) -> None:
        super().__init__(inner)
        self._inner = inner
        self._before, self._behind = before, behind

    def all_reduce(self, x: Tensor) -> Tensor:
        """Return the sum, spoilt."""
        return self._behind(self._inner.all_reduce(self._before(x)))

    def gather(self, x: Tensor) -> Tensor | None:
        """Return what the communicator beneath does."""
        return self._inner.gather(x)
