"""Let a communicator that knows the memory of hosts only serve ranks that compute on GPUs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ollampi.mpiruntime.communicator import Around, Communicator


class Staged(Around):
    """The communicator `inner`, to and from which tensors of GPUs travel through memory of the host.

    Tensors of the CPU pass as they are. Ranks may share a GPU. A call waits until the device has made its tensor, so
    that no CUDA graph can hold one.
    """

    def __init__(self, inner: Communicator) -> None:
        super().__init__(inner)
        self._inner = inner
        self.share = self._share

    def all_reduce(self, x: Tensor) -> Tensor:
        """Return the sum of x [...] over all ranks on its device, in fp64 where x is, else in fp32; collective."""
        return like(x, self._inner.all_reduce(on_host(x)))

    def all_reduce_later(self, x: Tensor) -> Callable[[], Tensor]:
        """Return what waits for the sum of x [...], which is copied now and under way then; collective."""
        wait = self._inner.all_reduce_later(on_host(x))
        return lambda: like(x, wait())

    def share_rows(self, rows: Tensor, owners: Tensor) -> Tensor:
        """Return rows [T, D] as their owners [T] have them, in fp32 on their device; collective."""
        return like(rows, self._inner.share_rows(on_host(rows), owners.cpu()))

    def gather(self, x: Tensor) -> Tensor | None:
        """Return the x [B, d] of all ranks side by side in fp32 on rank 0, on its device, and None elsewhere."""
        joined = self._inner.gather(on_host(x))
        return None if joined is None else like(x, joined)

    def _share(self, x: Tensor) -> None:
        """Fill x [...] on every rank with rank 0's; contiguous, collective."""
        host = on_host(x)
        self._inner.share(host)
        if host is not x:
            x.copy_(host)


def on_host(x: Tensor) -> Tensor:
    """Return x [...] in memory of the host; what comes from a GPU is a copy in pinned memory, and whole by then."""
    if not x.is_cuda:
        return x
    host = pinned(x)
    host.copy_(x)
    return host


def pinned(x: Tensor) -> Tensor:
    """Return room for x [...] that a GPU reads and writes by itself; torch keeps it for the next ones."""
    return torch.empty(x.shape, dtype=x.dtype, pin_memory=True)


def like(x: Tensor, host: Tensor) -> Tensor:
    """Return a tensor of the host [...] on the device of x; it is on its way in the order of the current stream."""
    if not x.is_cuda:
        return host
    return x.new_empty(host.shape, dtype=host.dtype).copy_(host, non_blocking=True)
