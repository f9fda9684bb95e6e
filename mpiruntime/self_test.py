"""Find ranks that compute wrong, by tests whose answers are known: weights, caches, sums."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

import torch

from ollampi.mpiruntime.cache_check import CacheCheck
from ollampi.mpiruntime.communicator import Communicator
from ollampi.mpiruntime.decoder import Decoder
from ollampi.mpiruntime.groups import Groups
from ollampi.mpiruntime.kv_cache import KVCache
from ollampi.mpiruntime.step import Examine
from ollampi.mpiruntime.weight_check import WeightCheck

_RUN = 64  # numbers of each rank in a sum: whole groups of any codec
_CACHES = 0.25  # of the time for a test
_INEXACT = 0.02  # of a number, what codes in few bits may change: a scale in 8 bits of mantissa


@dataclass(frozen=True)
class Finding:
    """What one rank found.

    wrong: the ranks whose part of a sum over all came out wrong there; learning: as in WeightCheck; apart: of each
    group that was tested, its ranks and those whose part came out wrong.
    """

    faults: list[str]
    wrong: list[int]
    learning: bool
    apart: list[tuple[list[int], list[int]]] = field(default_factory=list)


class SelfTest:
    """The tests of one rank.

    comm: sums exactly; sums: where activations are summed, maybe in fewer bits.
    """

    def __init__(self, comm: Communicator, sums: Communicator) -> None:
        self.weights = WeightCheck()
        self._caches = CacheCheck()
        self._comm = comm
        self._sums = sums

    def forget(self, number: int) -> None:
        """Let go of a model."""
        self.weights.forget(number)
        self._caches.forget(number)

    @torch.inference_mode()
    def __call__(
        self,
        message: Examine,
        models: Mapping[int, Decoder],
        caches: Mapping[int, KVCache],
        groups: Groups,
        device: torch.device,
    ) -> list[Finding]:
        """Return what every rank found, equal on all ranks; collective.

        models, caches: those of this rank, by number; groups: of this rank; device: where it computes. All ranks go
        through groups in the order of the message, so that those which overlap do not wait in a circle.
        """
        faults = self._caches.look(caches, message.blocks, _CACHES * message.budget_s)
        faults += self.weights.look(models, (1 - _CACHES) * message.budget_s)
        wrong = self._wrong_of(self._comm, self._sums, device)
        apart = []
        for ranks in [ranks for ranks in message.groups if self._comm.rank in ranks]:
            group = groups.of(ranks)
            apart.append((ranks, [ranks[place] for place in self._wrong_of(group.comm, group.sums, device)]))
        mine = Finding(faults, wrong, self.weights.is_learning, apart)
        told = self._comm.collect(json.dumps(asdict(mine)).encode())
        return [Finding(**json.loads(text)) for text in told]

    def _wrong_of(self, comm: Communicator, sums: Communicator, device: torch.device) -> list[int]:
        """Return the ranks of a group, as it numbers them, whose part of a sum is wrong here; collective over it."""
        return sorted({*self._wrong(comm, device, 0.0), *self._wrong(sums, device, _INEXACT)})

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
    _blame(faults, {rank: finding.wrong for rank, finding in enumerate(findings)}, "ranks")
    groups: dict[tuple[int, ...], dict[int, list[int]]] = {}
    for rank, finding in enumerate(findings):
        for ranks, wrong in finding.apart:
            groups.setdefault(tuple(ranks), {})[rank] = wrong
    for members, seen in groups.items():
        _blame(faults, seen, f"ranks {' '.join(map(str, members))}")
    return faults


def _blame(faults: list[list[str]], seen: Mapping[int, Sequence[int]], whom: str) -> None:
    """Add to each rank's faults what sums over some ranks say; seen: the ranks that were wrong on each of these."""
    guilty = [rank for rank in seen if 2 * sum(rank in wrong for wrong in seen.values()) > len(seen)]
    for rank in guilty:
        faults[rank].append(f"its part of a sum over {whom} comes out wrong")
    for rank, wrong in seen.items():
        if set(wrong) - set(guilty):
            faults[rank].append(f"a sum over {whom} comes out wrong here")


def _number(rank: int) -> float:
    """Return what a rank adds, small and whole."""
    return 1.0 + rank % 7
