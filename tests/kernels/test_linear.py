"""One call site multiplies by weights: right for every number of rows, with few shapes for the library below."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ollampi.kernels.choice import NATIVE, Choice
from ollampi.kernels.linear import gated, linear, padded_rows
from ollampi.kernels.ops import gate_multiply_torch
from ollampi.kernels.quantised import quantise


@pytest.mark.parametrize("rows", [0, 1, 2, 3, 5, 31, 32, 33, 50, 96, 97])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("choice", [NATIVE, Choice({"bfloat16": 2}), Choice({"bfloat16": 0})])
def test_bfloat16_is_fp32_arithmetic_rounded_once_at_most(rows: int, with_bias: bool, choice: Choice) -> None:
    torch.manual_seed(rows)
    x = torch.randn(rows, 48).bfloat16()
    weight, bias = torch.randn(40, 48).bfloat16(), torch.randn(40).bfloat16() if with_bias else None
    exact = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    out = linear(x, weight, bias, choice)
    assert out.shape == (rows, 40)
    assert out.dtype in (torch.bfloat16, torch.float32)
    torch.testing.assert_close(out.double(), exact, rtol=2**-7, atol=2**-5)


@pytest.mark.parametrize("rows", [1, 5, 50])
@pytest.mark.parametrize("choice", [NATIVE, Choice({"float32": 0})])
def test_float32_is_taken_as_it_is(rows: int, choice: Choice) -> None:
    x, weight, bias = torch.randn(rows, 8), torch.randn(3, 8), torch.randn(3)
    exact = F.linear(x.double(), weight.double(), bias.double())
    torch.testing.assert_close(linear(x, weight, bias, choice).double(), exact, rtol=1e-6, atol=1e-6)


def test_few_shapes_reach_the_library() -> None:
    shapes = {padded_rows(count) for count in range(1, 513)}
    assert all(padded_rows(count) >= count for count in range(513))
    assert len(shapes) == 6 + 15


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("with_bias", [False, True])
def test_quantised_weights_are_multiplied_alike_by_both_kernels(bits: int, with_bias: bool) -> None:
    x, weight, bias = torch.randn(17, 96), quantise(torch.randn(20, 96), bits), torch.randn(20) if with_bias else None
    native, twin = (linear(x, weight, bias, Choice({f"q{bits}": count})) for count in (512, 16))
    torch.testing.assert_close(native, twin, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("width", [16, 32, 20, 33])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("rows", [1, 8, 19])
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh", "gelu"])
def test_gated_products_are_those_of_two_steps(width: int, with_bias: bool, rows: int, activation: str) -> None:
    weight, bias = torch.randn(2 * width, 96), torch.randn(2 * width) if with_bias else None
    x = torch.randn(rows, 96)
    for matrix in (weight, weight.bfloat16(), quantise(weight, 8), quantise(weight, 4)):
        given = None if bias is None else bias.to(torch.bfloat16 if matrix is not weight else torch.float32)
        wanted = gate_multiply_torch(linear(x, matrix, given).float(), activation)
        found = gated(x, matrix, given, activation=activation)
        step = 1e-5 if found.dtype == torch.float32 else 2**-6  # bf16 without a library: each step is rounded
        torch.testing.assert_close(found.float(), wanted, rtol=step, atol=step)
