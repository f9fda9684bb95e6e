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


@LEVELS
@TYPES
@SHAPES
def test_silu_multiply(level: int, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    gate_up = (torch.randn(shape[0], 2 * shape[1]) * 10).to(dtype)
    found, wanted = ops.silu_multiply(gate_up, level), ops.silu_multiply_torch(gate_up.float())
    assert found.dtype == dtype
    step = 1e-6 if dtype == torch.float32 else 2**-8
    assert_close(found.float(), wanted, rtol=step, atol=1e-30)


@LEVELS
@pytest.mark.parametrize("gate", [0.0, -0.0, 1e-42, -60.0, -80.0, 100.0, 1e30, torch.nan, torch.inf])
@pytest.mark.parametrize("up", [0.0, 1e-42, 1.0, 3e38, torch.nan, -torch.inf])
def test_silu_multiply_at_the_ends_of_the_range(level: int, gate: float, up: float) -> None:
    gate_up = torch.tensor([[gate] * 17 + [up] * 17])
    found, wanted = ops.silu_multiply(gate_up, level), ops.silu_multiply_torch(gate_up)
    assert_close(found, wanted, rtol=2e-6, atol=1e-36, equal_nan=True)


@LEVELS
@pytest.mark.parametrize("gate", [-88.5, -1e4, -1e30, -3e38])
@pytest.mark.parametrize("up", [1.0, 1e3])
def test_a_gate_far_below_zero_lets_nothing_through(level: int, gate: float, up: float) -> None:
    gate_up = torch.tensor([[gate] * 17 + [up] * 17])
    assert (ops.silu_multiply(gate_up, level).abs() <= 1e-33).all()


@LEVELS
def test_a_gate_of_minus_infinity_is_no_number(level: int) -> None:
    gate_up = torch.tensor([[-torch.inf, 1.0]])
    assert ops.silu_multiply(gate_up, level).isnan().all()
    assert ops.silu_multiply_torch(gate_up).isnan().all()
