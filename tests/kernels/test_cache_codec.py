"""The cache's 8-bit format against arithmetic in numpy, over shapes and over the ends of the range."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import Tensor

from ollampi.kernels.cache_codec import decode, encode

TYPES = (torch.float32, torch.bfloat16)
LARGEST = {dtype: torch.finfo(dtype).max for dtype in TYPES}


def to_bf16(value: float) -> float:
    """Return a positive fp32 number rounded to bf16, ties to even, by its bits."""
    bits = int(np.float32(value).view(np.uint32))
    return float(np.uint32((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).view(np.float32))


def expected(vector: list[float]) -> tuple[list[int], float]:
    """Return codes and scale of a vector of fp32 numbers, one element at a time."""
    scale = to_bf16(min(np.float32(max(abs(x) for x in vector)) / np.float32(127), np.float32(2.0**121)))
    quotients = [np.float32(x) / np.float32(scale) if scale else np.float32(0) for x in vector]
    return [int(np.clip(np.rint(q), -127, 127)) for q in quotients], scale


def vectors(seed: int, dtype: torch.dtype) -> Tensor:
    """Return vectors of a random shape whose sizes differ by many orders of magnitude."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    shape = [draw.randint(1, 5) for _ in range(draw.randint(0, 3))]
    x = torch.randn(*shape, draw.choice([1, 2, 3, 24, 33, 128]))
    return (x * 10.0 ** torch.randint(-30, 30, (*shape, 1))).to(dtype)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("seed", range(20))
def test_codes_and_scales_are_those_of_arithmetic(seed: int, dtype: torch.dtype) -> None:
    x = vectors(seed, dtype)
    codes, scales = encode(x)
    assert (codes.dtype, codes.shape) == (torch.int8, x.shape)
    assert (scales.dtype, scales.shape) == (torch.bfloat16, x.shape[:-1])
    flat = x.float().reshape(-1, x.shape[-1]).tolist()
    rows = zip(flat, codes.reshape(-1, x.shape[-1]).tolist(), scales.reshape(-1).tolist(), strict=True)
    for vector, *found in rows:
        assert tuple(found) == expected(vector)


@pytest.mark.parametrize("seed", range(20))
def test_an_element_is_off_by_at_most_half_a_scale(seed: int) -> None:
    x = vectors(seed, torch.float32)
    codes, scales = encode(x)
    error = (decode(codes, scales, torch.float32).double() - x.double()).abs()
    assert bool((error <= 0.5 * scales.double().unsqueeze(-1) * (1 + 1e-6)).all())
    assert bool((scales.double() * 127 <= x.double().abs().amax(-1) * (1 + 2**-8)).all())


def test_reading_is_exact_in_fp32_and_rounded_once_in_bf16() -> None:
    codes = torch.arange(-127, 128, dtype=torch.int8).repeat(64, 1)
    scales = (torch.rand(64) * 3 + 0.01).bfloat16()
    exact = codes.double() * scales.double()[:, None]
    assert torch.equal(decode(codes, scales, torch.float32).double(), exact)
    assert torch.equal(decode(codes, scales, torch.bfloat16), exact.float().bfloat16())


@pytest.mark.parametrize("dtype", TYPES)
def test_zeros_stay_zeros(dtype: torch.dtype) -> None:
    codes, scales = encode(torch.zeros(3, 2, 5, dtype=dtype))
    assert not codes.any()
    assert not scales.any()
    assert not decode(codes, scales, dtype).any()
    assert encode(torch.zeros(0, 2, 5, dtype=dtype))[0].shape == (0, 2, 5)


@pytest.mark.parametrize("dtype", TYPES)
def test_the_largest_numbers_stay_finite_and_denormal_ones_small(dtype: torch.dtype) -> None:
    for largest in (LARGEST[dtype], -LARGEST[dtype], LARGEST[dtype] / 1.01):
        x = torch.tensor([largest, 1.0, -largest / 2], dtype=dtype)
        found = decode(*encode(x), dtype)
        assert bool(((found - x).abs() <= 0.01 * LARGEST[dtype]).all())
    tiny = torch.tensor([1e-45, -1e-42, 1e-39, -1e-38], dtype=torch.float32)
    for length in (1, 2, 3, 4):
        x = tiny[:length].to(dtype)
        assert bool(((decode(*encode(x), dtype) - x).abs() <= 6e-39).all())


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_seen_when_it_is_read_and_touches_no_other_vector(dtype: torch.dtype, bad: float) -> None:
    for place in range(4):
        x = torch.randn(3, 4).to(dtype)
        x[1, place] = bad
        codes, scales = encode(x)
        found = decode(codes, scales, dtype)
        assert bool(found[1].isnan().all())
        assert torch.equal(found[::2], decode(*encode(x[::2]), dtype))
        assert bool(found[::2].isfinite().all())


def test_a_vector_does_not_depend_on_its_company() -> None:
    x = torch.randn(7, 6, 64)
    codes, scales = encode(x)
    for heads in (slice(0, 1), slice(2, 5), slice(5, 6)):
        for found, whole in zip(encode(x[3:4, heads]), (codes, scales), strict=True):
            assert torch.equal(found, whole[3:4, heads])
