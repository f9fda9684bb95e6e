"""Gated activations: every level of the native library, the torch forms and the exact twins agree."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from ollampi.kernels import exact, ops
from ollampi.kernels.native import levels

LEVELS = pytest.mark.parametrize("level", levels())
TYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
SHAPES = pytest.mark.parametrize("shape", [(0, 8), (1, 1), (1, 33), (3, 64), (7, 1000), (70, 2048)])
GATES = pytest.mark.parametrize("activation", ["silu", "gelu_tanh", "gelu"])
NATIVE = pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])


def gated(activation: str, gate: torch.Tensor, level: int | None) -> torch.Tensor:
    """Return the activation of gate [n]; level None: of the exact twin."""
    gate_up = torch.cat([gate, torch.ones_like(gate)])[None]
    return (
        exact.gate_multiply(gate_up, activation)[0]
        if level is None
        else ops.gate_multiply(gate_up, activation, level)[0]
    )


def defined(activation: str, x: torch.Tensor) -> torch.Tensor:
    """Return the activation of x [n] in fp64, without the cancellation of 1 + tanh where that is near 0."""
    x = x.double()
    steep = x if activation == "silu" else 2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    return x / (1 + torch.exp(-steep))


@LEVELS
@TYPES
@SHAPES
@GATES
def test_rows_of_any_shape(level: int, dtype: torch.dtype, shape: tuple[int, int], activation: str) -> None:
    gate_up = (torch.randn(shape[0], 2 * shape[1]) * 10).to(dtype)
    found, wanted = ops.gate_multiply(gate_up, activation, level), ops.gate_multiply_torch(gate_up.double(), activation)
    assert found.dtype == dtype
    step = 1e-6 if dtype == torch.float32 else 2**-8 if activation in ops.NATIVE_GATES else 2**-7
    allowed = 1e-30 + step * wanted.abs() + cancelled(gate_up, activation)
    assert ((found.double() - wanted).abs() <= allowed).all()


def cancelled(gate_up: torch.Tensor, activation: str) -> torch.Tensor | float:
    """Return what each element [n, width] may lose in torch's 1 + tanh, or in its 1 + erf where that is near 0.

    Near -1 numbers of fp32 are 2^-24 apart, and the erf of torch's vectors is good to a few; the gate multiplies it.
    """
    gate, up = gate_up.double().chunk(2, -1)
    erf = torch.where(gate < 0, 2**-21 * (gate * up).abs(), 0.0)
    return {"silu": 0.0, "gelu_tanh": 1e-12, "gelu": erf}[activation]


@pytest.mark.parametrize("level", [*levels(), None])
@NATIVE
def test_every_result_is_near_that_of_fp64(level: int | None, activation: str) -> None:
    x = torch.cat(
        [torch.linspace(-86, 30, 100_001), torch.linspace(-9.5, 9.5, 100_001), torch.linspace(-1e-3, 1e-3, 999)]
    )
    wanted = defined(activation, x)
    close = (wanted.abs() > 1e-36) | (x == 0)
    assert close.sum() > 90_000
    assert_close(gated(activation, x, level).double()[close], wanted[close], rtol=4e-7, atol=0)
    assert (gated(activation, x, level)[~close].abs() <= 2e-36).all()


@LEVELS
@GATES
@pytest.mark.parametrize(
    "gate", [0.0, -0.0, 1e-42, -1e-40, -60.0, -80.0, 100.0, 1e14, 1e30, 3e38, torch.nan, torch.inf]
)
@pytest.mark.parametrize("up", [0.0, 1e-42, 1.0, 3e38, torch.nan, -torch.inf])
def test_the_ends_of_the_range(level: int, activation: str, gate: float, up: float) -> None:
    gate_up = torch.tensor([[gate] * 17 + [up] * 17])
    found, wanted = ops.gate_multiply(gate_up, activation, level), ops.gate_multiply_torch(gate_up, activation)
    assert_close(found, wanted, rtol=2e-6, atol=1e-36, equal_nan=True)


@pytest.mark.parametrize("level", [*levels(), None])
@NATIVE
@pytest.mark.parametrize("gate", [-88.5, -1e4, -1e14, -1e30, -3e38])
def test_a_gate_far_below_zero_lets_nothing_through(level: int | None, activation: str, gate: float) -> None:
    assert (gated(activation, torch.full((17,), gate), level).abs() <= 1e-35).all()


@LEVELS
@GATES
def test_a_gate_of_minus_infinity_is_no_number(level: int, activation: str) -> None:
    gate_up = torch.tensor([[-torch.inf, 1.0]])
    assert ops.gate_multiply(gate_up, activation, level).isnan().all()
    assert ops.gate_multiply_torch(gate_up, activation).isnan().all()


@NATIVE
def test_nan_stays_in_the_exact_twin(activation: str) -> None:
    assert gated(activation, torch.tensor([torch.nan, 1.0]), None).isnan().tolist() == [True, False]
