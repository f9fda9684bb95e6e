"""The small operations of a layer: every level of the native library gives what the torch forms define."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from ollampi.kernels import ops
from ollampi.kernels.native import levels

LEVELS = pytest.mark.parametrize("level", levels())
TYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
SHAPES = pytest.mark.parametrize("shape", [(0, 8), (1, 1), (1, 33), (3, 64), (7, 1000), (70, 2048)])


@LEVELS
@TYPES
@SHAPES
def test_rms_norm(level: int, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    x, weight = torch.randn(shape) * 3, torch.randn(shape[1]).to(dtype)
    assert_close(ops.rms_norm(x, weight, 1e-5, level), ops.rms_norm_torch(x, weight, 1e-5), rtol=2e-6, atol=1e-7)


@LEVELS
def test_rms_norm_at_the_ends_of_the_range(level: int) -> None:
    x, weight = torch.randn(6, 40), torch.randn(40)
    x[0], x[1], x[2], x[3, 3], x[4, 5] = 0.0, 1e-42, 1e18, torch.nan, torch.inf
    found, wanted = ops.rms_norm(x, weight, 1e-5, level), ops.rms_norm_torch(x, weight, 1e-5)
    assert_close(found, wanted, rtol=2e-6, atol=1e-7, equal_nan=True)
    assert found[3].isnan().all()
    assert found[4, 5].isnan()
