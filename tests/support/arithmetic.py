"""Random numbers, comparisons and threads for the tests of kernels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ollampi.kernels.quantised import Quantised, dequantise, rounded

DRAW = torch.Generator().manual_seed(0)


def numbers(*shape: int, spread: int = 0) -> torch.Tensor:
    """Return random numbers whose magnitudes span `spread` powers of two."""
    return torch.randn(shape, generator=DRAW) * torch.randint(-spread, 1, shape, generator=DRAW).float().exp2()


def assert_near(found: torch.Tensor, expected: torch.Tensor, x: torch.Tensor, matrix: Quantised) -> None:
    """Compare two products, whose sums may differ by the rounding of fp32."""
    size = rounded(x).abs() @ dequantise(matrix).abs().T
    assert found.shape == expected.shape
    assert found.dtype == torch.float32
    assert ((found - expected).abs() <= 1e-6 * size + 1e-38).all()


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Have torch and the native kernels compute with so many threads in the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
