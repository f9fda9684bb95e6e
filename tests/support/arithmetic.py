"""Random numbers and threads for the tests of kernels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

DRAW = torch.Generator().manual_seed(0)


def numbers(*shape: int, spread: int = 0) -> torch.Tensor:
    """Return random numbers whose magnitudes span `spread` powers of two."""
    return torch.randn(shape, generator=DRAW) * torch.randint(-spread, 1, shape, generator=DRAW).float().exp2()


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Have torch and the native kernels compute with so many threads in the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
