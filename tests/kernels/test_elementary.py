"""exp, cos and sin are right, and a result does not depend on where its number stands."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from support.arithmetic import threads
from torch import Tensor

from ollampi.kernels.elementary import cos_sin, exp, tanh
from ollampi.kernels.exact import gate_multiply

LENGTHS = [*range(1, 20), 31, 32, 33, 47, 48, 49, 63, 64, 65, 70]  # vectors have up to 16 elements
# What deterministic arithmetic does to elements. An operation of two numbers gets a number and a function of it.
OPERATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "exp": exp,
    "tanh": tanh,
    "cos": lambda x: cos_sin(x.abs())[0],
    "sin": lambda x: cos_sin(x.abs())[1],
    "arithmetic": lambda x: (x * 1.1 - x / 3) + x * (x - 0.7),
    "fp64": lambda x: ((x.double() / 3).round() * 1.1 + (1 / (x.double().square() + 1e-5).sqrt())).float(),
    "bf16": lambda x: x.bfloat16().float(),
    "tiny bf16": lambda x: (x * 1e-39).bfloat16().float(),
}


def same_everywhere(f: Callable[[Tensor], Tensor], x: Tensor) -> bool:
    """Return whether f of each number is the same at offsets 0 to 16 in runs of LENGTHS, with and without gaps."""
    alone = torch.cat([f(x[i : i + 1].clone()) for i in range(len(x))])
    for offset in range(17):
        for length in LENGTHS:
            part = x[offset : offset + length]
            spread = torch.stack((part, part), 1)[:, 0]
            expected = alone[offset : offset + length]
            if not (torch.equal(f(part), expected) and torch.equal(f(spread), expected)):
                return False
    return True


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_result_does_not_depend_on_its_place(name: str) -> None:
    x = torch.randn(87, generator=torch.Generator().manual_seed(0)) * 10
    assert same_everywhere(OPERATIONS[name], x)


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_result_does_not_depend_on_the_number_of_threads(name: str) -> None:
    x = torch.randn(200_003, generator=torch.Generator().manual_seed(0)) * 10
    results = []
    for count in (1, 2, 3):
        with threads(count):
            results.append(OPERATIONS[name](x))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_a_gate_does_not_depend_on_its_place(activation: str) -> None:
    row = torch.randn(2, 70, generator=torch.Generator().manual_seed(0)) * 10
    whole = gate_multiply(torch.cat((row[0], row[1]))[None], activation)[0]
    for first in range(17):
        for last in range(first + 1, 71, 3):
            part = gate_multiply(torch.cat((row[0, first:last], row[1, first:last]))[None], activation)[0]
            assert torch.equal(part, whole[first:last])


def test_exp_is_right() -> None:
    x = torch.cat((torch.linspace(-87, 88, 20_001), torch.linspace(-1, 1, 10_001), torch.tensor([0.0, -0.0])))
    out = exp(x)
    expected = torch.tensor([math.exp(v) for v in x.tolist()], dtype=torch.float64)
    assert ((out.double() - expected).abs() <= 2.0**-22 * expected).all()
    assert (out[x <= 0] <= 1).all()
    assert out[-2:].tolist() == [1.0, 1.0]
    assert exp(torch.tensor([-torch.inf, -1e30, torch.nan])).isnan().tolist() == [False, False, True]


def test_cos_and_sin_are_right() -> None:
    angles = torch.cat((torch.linspace(0, 20, 20_001), torch.linspace(0, 2.0**20, 20_001)))
    cos, sin = cos_sin(angles)
    for out, function in ((cos, math.cos), (sin, math.sin)):
        expected = torch.tensor([function(a) for a in angles.tolist()], dtype=torch.float64)
        assert (out.double() - expected).abs().max() <= 2.0**-25


def test_what_the_sampler_uses_of_numpy_does_not_depend_on_the_place() -> None:
    x = np.random.default_rng(0).standard_normal(87) * 10
    for f in (np.exp, lambda v: np.log(np.abs(v))):
        alone = np.array([f(x[i : i + 1].copy())[0] for i in range(len(x))])
        for offset in range(17):
            for length in LENGTHS:
                part = x[offset : offset + length]
                assert np.array_equal(f(part), alone[offset : offset + length])
                assert np.array_equal(f(np.stack((part, part), 1)[:, 0]), alone[offset : offset + length])
