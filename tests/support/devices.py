"""Stand in for GPUs: those that ranks see, and tensors on them without numbers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ollampi.kernels.cuda_module import Kernels
from ollampi.mpiruntime.devices import Gpu
from ollampi.mpiruntime.gpu_arithmetic import OnGpu
from ollampi.mpiruntime.placement import Placement
from ollampi.mpiruntime.world import RankFacts


class FakeGpus:
    """GPUs that a rank sees, of which it can use none; used: what it chose."""

    FREE_BYTES = 8 << 30

    def __init__(self, found: list[Gpu]) -> None:
        self._found = found
        self.used: list[int] = []

    def visible(self) -> list[Gpu]:
        """Return them."""
        return self._found

    def use(self, number: int) -> None:
        """Note the choice."""
        self.used.append(number)

    def free_bytes(self, number: int) -> int:
        """Return a number of bytes."""
        assert number in range(len(self._found))
        return self.FREE_BYTES


def facts_on(identities: list[str]) -> list[RankFacts]:
    """Return the facts of ranks of one host with these GPUs, "" for none."""
    size = len(identities)
    return [
        RankFacts(rank, "h", rank, size, [0], 1, 1, 0, *(("cuda:0", "GPU of a test", gpu, 1) if gpu else ()))
        for rank, gpu in enumerate(identities)
    ]


class FakeGraph:
    """A graph that does the recorded work again, on the same tensors; log: what every graph was told."""

    def __init__(self, log: list[str]) -> None:
        self._log = log
        self._work: Callable[[], Tensor | None] = lambda: None
        self._out: Tensor | None = None

    def record(self, work: Callable[[], Tensor | None]) -> Tensor | None:
        """Do the work once; return a tensor that replays write."""
        self._log.append("record")
        self._work, self._out = work, work()
        if self._out is not None:
            self._out = torch.full_like(self._out, torch.nan)  # recording alone writes nothing
        return self._out

    def replay(self) -> None:
        """Do the work again."""
        self._log.append("replay")
        found = self._work()
        if self._out is not None and found is not None:
            self._out.copy_(found)


def as_gpu(kernels: Kernels | None, log: list[str] | None = None) -> Placement:
    """Return a place that computes on the CPU what a GPU would, and records steps where there is a log."""
    graphs = None if log is None else lambda: lambda: FakeGraph(log)
    return Placement(torch.device("cpu"), "the GPU of a test", OnGpu(kernels), graphs)
