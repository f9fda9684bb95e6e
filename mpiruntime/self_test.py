"""Find ranks that compute wrong, by tests whose answers are known: their weights, and sums over all ranks."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch

from ollampi.mpiruntime.communicator import Communicator
from ollampi.mpiruntime.decoder import Decoder
from ollampi.mpiruntime.step import Examine
from ollampi.mpiruntime.weight_check import WeightCheck

_RUN = 64  # numbers of each rank in a sum: whole groups of any codec
_INEXACT = 0.02  # of a number, what codes in few bits may change: a scale in 8 bits of mantissa


@dataclass(frozen=True)
class Finding:
    """What one rank found; wrong: the ranks whose part of a sum came out wrong there; learning: as in WeightCheck."""

    faults: list[str]
    wrong: list[int]
    learning: bool


class SelfTest:
    """The tests of one rank.

    comm: sums exactly; sums: where activations are summed, maybe in fewer bits.
    """

    def __init__(self, comm: Communicator, sums: Communicator) -> None:
        self.weights = WeightCheck()
        self._comm = comm
        self._sums = sums

    @torch.inference_mode()
    def __call__(self, message: Examine, models: Mapping[int, Decoder], device: torch.device) -> list[Finding]:
        """Return what every rank found, equal on all ranks; collective.

        models: those of this rank, by number; device: where it computes.
        """
        faults = self.weights.look(models, message.budget_s)
        wrong = sorted({*self._wrong(self._comm, device, 0.0), *self._wrong(self._sums, device, _INEXACT)})
        mine = Finding(faults, wrong, self.weights.is_learning)
        told = self._comm.collect(json.dumps(asdict(mine)).encode())
        return [Finding(**json.loads(text)) for text in told]

    def _wrong(self, comm: Communicator, device: torch.device, tolerance: float) -> list[int]:
        """Return the ranks whose part of a sum is wrong here: each adds numbers where all others add zeros."""
        x = torch.zeros(1, _RUN * comm.size, device=device)
        x[:, _RUN * comm.rank : _RUN * (comm.rank + 1)] = _number(comm.rank)
        total = comm.all_reduce(x).view(comm.size, _RUN).cpu()
        wanted = torch.tensor([_number(rank) for rank in range(comm.size)])[:, None]
        right = (total - wanted).abs() <= tolerance * wanted  # which NaN is not
        wrong: list[int] = (~right).any(1).nonzero()[:, 0].tolist()
        return wrong


def judged(findings: Sequence[Finding]) -> list[list[str]]:
    """Return the faults of each rank.

    A wrong sum is laid to the rank whose part of it is wrong on most ranks, else to the ranks where it is wrong.
    """
    faults = [list(finding.faults) for finding in findings]
    size = len(findings)
    guilty = [rank for rank in range(size) if 2 * sum(rank in finding.wrong for finding in findings) > size]
    for rank in guilty:
        faults[rank].append("its part of a sum over ranks comes out wrong")
    for rank, finding in enumerate(findings):
        if set(finding.wrong) - set(guilty):
            faults[rank].append("a sum over ranks comes out wrong here")
    return faults


def _number(rank: int) -> float:
    """Return what a rank adds, small and whole."""
    return 1.0 + rank % 7
