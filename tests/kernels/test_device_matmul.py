"""The CUDA products give what plain arithmetic gives; emulated on the CPU."""

from __future__ import annotations

import pytest
import torch
from support.arithmetic import numbers
from support.emulated import Emulated
from torch.testing import assert_close

from ollampi.kernels.device_matmul import MOST_TOKENS, linear, restored
from ollampi.kernels.quantised import Quantised, dequantise, empty, quantise, set_codes

SHAPES = [(1, 8), (16, 32), (37, 64), (48, 100), (5, 7), (130, 264), (33, 1000)]


def quantised(rows: int, width: int, bits: int, scales: torch.dtype) -> Quantised:
    """Return a random matrix with scales of a type."""
    if scales == torch.bfloat16:
        return quantise(numbers(rows, width, spread=4), bits)
    matrix = empty(rows, width, bits, scales_dtype=scales)
    middle = 1 << (bits - 1)
    codes = torch.randint(-middle, middle, (rows, width // 32, 32))
    of_groups = torch.randn(rows, width // 32).half()
    of_groups[0, 0] = 3e-7  # subnormal
    set_codes(matrix, 0, (codes * of_groups.float()[..., None]).flatten(1), of_groups)
    return matrix


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kept", [torch.float32, torch.bfloat16])
def test_few_tokens_times_plain_weights(shape: tuple[int, int], kept: torch.dtype) -> None:
    weight, kernels = numbers(*shape).to(kept), Emulated()
    for count in range(1, MOST_TOKENS + 1):
        x = numbers(count, shape[1])
        found = linear(x, weight, None, kernels)
        assert found.dtype == torch.float32
        size = x.abs() @ weight.float().abs().T
        assert ((found - x @ weight.float().T).abs() <= 1e-6 * size).all()
    assert kernels.launched == ["multiply_plain"] * MOST_TOKENS


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("scales", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_tokens_times_quantised_weights(shape: tuple[int, int], bits: int, scales: torch.dtype) -> None:
    if scales == torch.float16 and shape[1] % 32:
        shape = shape[0], 32 * (shape[1] // 32 + 1)
    weight, kernels = quantised(*shape, bits, scales), Emulated()
    plain = dequantise(weight)
    for count in (1, MOST_TOKENS, 9):
        x = numbers(count, shape[1])
        found = linear(x, weight, None, kernels)
        assert ((found - x @ plain.T).abs() <= 2e-6 * (x.abs() @ plain.abs().T)).all()
    assert kernels.launched == ["multiply_panels"] * 2 + ["restore"]
    assert torch.equal(restored(weight, 0, shape[0], kernels), plain)


def test_restored_weights_are_rounded_once() -> None:
    for bits in (8, 4):
        matrix = quantise(numbers(40, 96), bits)
        matrix = Quantised(bits, 40, 96, matrix.weights, matrix.scales, torch.bfloat16)
        assert torch.equal(restored(matrix, 16, 40, Emulated()), dequantise(matrix)[16:].bfloat16())


@pytest.mark.parametrize("bits", [0, 8, 4])
def test_a_bias_is_added_and_torch_alone_gives_the_same(bits: int) -> None:
    weight, bias = numbers(48, 64), numbers(48)
    matrix = quantise(weight, bits) if bits else weight
    for count in (1, 7):
        x = numbers(count, 64)
        assert_close(linear(x, matrix, bias, Emulated()), linear(x, matrix, bias, None), rtol=1e-4, atol=1e-4)
