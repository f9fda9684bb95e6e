"""Few tokens times plain weights: at every level of the native library the exact product but for rounding."""

from __future__ import annotations

import pytest
import torch
from support.arithmetic import numbers, threads

from ollampi.kernels.dense import matmul, matmul_torch
from ollampi.kernels.native import levels

LEVELS = pytest.mark.parametrize("level", levels())
TYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


@LEVELS
@TYPES
@pytest.mark.parametrize("shape", [(1, 1), (3, 31), (4, 32), (5, 33), (17, 100), (40, 257), (0, 32), (8, 0)])
@pytest.mark.parametrize("num_tokens", [0, 1, 3, 4, 5, 8, 19])
def test_products(level: int, dtype: torch.dtype, shape: tuple[int, int], num_tokens: int) -> None:
    weight, x = numbers(*shape, spread=8).to(dtype), numbers(num_tokens, shape[1], spread=8)
    found, exact = matmul(x, weight, level), x.double() @ weight.double().T
    assert found.shape == exact.shape
    assert found.dtype == torch.float32
    assert ((found - exact).abs() <= 1e-6 * (x.double().abs() @ weight.double().abs().T) + 1e-38).all()
    assert ((matmul_torch(x, weight) - exact).abs() <= 1e-6 * (x.double().abs() @ weight.double().abs().T)).all()


@LEVELS
@TYPES
def test_a_token_is_computed_alike_among_any_others(level: int, dtype: torch.dtype) -> None:
    weight, x = numbers(21, 70).to(dtype), numbers(11, 70)
    together = matmul(x, weight, level)
    for token in range(11):
        assert torch.equal(matmul(x[token : token + 1], weight, level)[0], together[token])


@LEVELS
@TYPES
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 3e38])
def test_what_is_not_finite_shows_in_its_own_token_alone(level: int, dtype: torch.dtype, bad: float) -> None:
    weight, x = numbers(9, 50).to(dtype).abs() + 1, numbers(6, 50)
    x[2, 40], x[2, 41] = bad, bad
    found = matmul(x, weight, level)
    assert not found[2].isfinite().any()
    assert found[[0, 1, 3, 4, 5]].isfinite().all()


@LEVELS
@TYPES
def test_denormal_weights_count(level: int, dtype: torch.dtype) -> None:
    weight = torch.full((2, 32), 2.0**-130).to(dtype)
    assert torch.equal(matmul(torch.full((1, 32), 2.0**100), weight, level), torch.full((1, 2), 2.0**-25))


@pytest.mark.skipif(not levels(), reason="the native kernels were not built")
@TYPES
def test_threads_change_nothing(dtype: torch.dtype) -> None:
    weight, x = numbers(203, 64).to(dtype), numbers(6, 64)
    alone = matmul(x, weight)
    with threads(3):
        assert torch.equal(matmul(x, weight), alone)
