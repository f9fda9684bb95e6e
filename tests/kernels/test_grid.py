"""Sums of products of numbers on grids are exact, so that no order can change them."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch

from ollampi.kernels.grid import largest, on_grid, power_of_two, reach, sum_bits


def wide(*shape: int, seed: int = 0) -> torch.Tensor:
    """Return numbers whose magnitudes span 60 powers of two."""
    draw = torch.Generator().manual_seed(seed)
    scale = torch.randint(-40, 20, shape, generator=draw).double().exp2()
    return (torch.randn(shape, generator=draw).double() * scale).float()


@pytest.mark.parametrize("length", [1, 2, 7, 256, 257, 11008, 16384, 131072])
def test_the_largest_sums_fit_into_fp64(length: int) -> None:
    computed, kept = sum_bits(length)
    assert length * 2 ** (computed + kept) <= 2**53
    assert kept <= 24
    assert min(computed, kept) >= 18


def test_a_power_of_two_is_reached_and_not_exceeded() -> None:
    tops = torch.tensor([1.0, 1.5, 2.0, 0.75, 2.0**-30, 2.0**-30 * (1 + 2.0**-52), 3e38], dtype=torch.float64)
    assert power_of_two(tops).tolist() == [1.0, 2.0, 2.0, 1.0, 2.0**-30, 2.0**-29, 2.0**128]
    assert power_of_two(torch.zeros(1, dtype=torch.float64)) > 0


@pytest.mark.parametrize("length", [3, 40, 300])
def test_every_order_gives_the_sum_that_fractions_give(length: int) -> None:
    computed, kept = sum_bits(length)
    x, y = wide(1, length), wide(1, length, seed=1)
    x, y = on_grid(x, reach(x), computed), on_grid(y, reach(y), kept)
    exact = sum(Fraction(a) * Fraction(b) for a, b in zip(x[0].tolist(), y[0].tolist(), strict=True))
    draw = torch.Generator().manual_seed(2)
    for _ in range(20):
        order = torch.randperm(length, generator=draw)
        assert Fraction((x[:, order] @ y[:, order].T).item()) == exact
        total = 0.0
        for i in order.tolist():
            total += x[0, i].item() * y[0, i].item()
        assert Fraction(total) == exact


def test_the_worst_sum_is_exact() -> None:
    computed, kept = sum_bits(4096)
    x = torch.full((1, 4096), 2.0**computed - 1, dtype=torch.float64)
    y = torch.full((1, 4096), 2.0**kept - 1, dtype=torch.float64)
    assert int((x @ y.T).item()) == 4096 * (2**computed - 1) * (2**kept - 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bits", [18, 22, 24])
def test_what_is_kept_stays_on_its_grid_and_within_its_reach(dtype: torch.dtype, bits: int) -> None:
    x = wide(2000, 8)
    size = reach(x)
    kept = on_grid(x, size, bits).to(dtype).double()
    steps = kept / (size * 2.0**-bits)
    assert torch.equal(steps, steps.round())
    assert (kept.abs() <= size).all()
    assert (reach(kept) <= size).all()
    if dtype == torch.float32:
        assert ((kept - x).abs() <= size * 2.0 ** -(bits + 1)).all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_row_that_is_not_finite_spoils_itself_alone(bad: float) -> None:
    x = wide(3, 5)
    x[1, 2] = bad
    out = on_grid(x, reach(x), 20)
    assert not out[1].isfinite().any()
    assert out[[0, 2]].isfinite().all()


def test_nothing_has_no_magnitude() -> None:
    assert torch.equal(largest(torch.zeros(3, 0)), torch.zeros(3, 1, dtype=torch.float64))
