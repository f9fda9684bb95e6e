"""Numbers that come as whole numbers times scales in fp16 are kept exactly, and multiplied like all others."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from support.arithmetic import DRAW, assert_near, numbers

from ollampi.kernels import native as native_kernels
from ollampi.kernels.groups import GROUP, ROWS
from ollampi.kernels.native import levels
from ollampi.kernels.quantised import (
    NotExact,
    NotFinite,
    Quantised,
    dequantise,
    empty,
    matmul,
    matmul_torch,
    set_codes,
    set_rows,
    take_rows,
    take_rows_torch,
)

BITS = pytest.mark.parametrize("bits", [8, 4])
LEVELS = pytest.mark.parametrize("level", levels())
SHAPES = pytest.mark.parametrize("shape", [(1, 32), (16, 32), (17, 64), (15, 96), (100, 256), (33, 992)])
WAYS = pytest.mark.parametrize("native", [True, False])
EXTREMES = [0.0, -0.0, 2**-24, -(2**-24), 2**-14 - 2**-24, -(2**-14), 65504.0, -65504.0]  # subnormal, largest


def coded(shape: tuple[int, int], bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return values [R, width] and their scales [R, width / 32], of any sign and size that fp16 has."""
    middle = 1 << (bits - 1)
    codes = torch.randint(-middle, middle, (shape[0], shape[1] // GROUP, GROUP), generator=DRAW)
    codes[..., 5], codes[..., 6] = -middle, middle - 1
    scales = (numbers(shape[0], shape[1] // GROUP, spread=20) * 64).half()
    for i, scale in enumerate(EXTREMES[: scales.numel()]):
        scales.view(-1)[-1 - i] = scale
    return (codes * scales.float()[..., None]).flatten(1), scales


def kept(values: torch.Tensor, scales: torch.Tensor, bits: int) -> Quantised:
    """Return the matrix of them."""
    matrix = empty(*values.shape, bits, scales_dtype=torch.float16)
    set_codes(matrix, 0, values, scales)
    return matrix


@BITS
@SHAPES
@WAYS
def test_they_are_kept_exactly(
    bits: int, shape: tuple[int, int], native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not native:
        monkeypatch.setattr(native_kernels, "library", lambda: None)
    values, scales = coded(shape, bits)
    matrix = kept(values, scales, bits)
    assert torch.equal(dequantise(matrix), values)
    wanted = torch.randint(0, shape[0], (7,), generator=DRAW)
    assert torch.equal(take_rows(matrix, wanted), values[wanted])
    assert torch.equal(take_rows_torch(matrix, wanted), values[wanted])
    assert matrix.nbytes == -(-shape[0] // ROWS) * ROWS * shape[1] * (bits + 0.5) / 8


@BITS
def test_every_scale_that_fp16_has(bits: int) -> None:
    scales = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.float16)
    scales = scales[scales.isfinite()].unflatten(0, (-1, 16))
    values = scales.float().repeat_interleave(GROUP, 1) * -(1 << (bits - 1))
    matrix = kept(values, scales, bits)
    assert torch.equal(dequantise(matrix), values)
    assert torch.equal(take_rows(matrix, torch.arange(len(scales))), values)
    one = torch.zeros(1, values.shape[1])
    one[0, 32::32] = 1.0
    wanted = values[:, 32::32].double().sum(1)
    size = values[:, 32::32].double().abs().sum(1)
    for level in levels():
        assert ((matmul(one, matrix, level)[0] - wanted).abs() <= 2e-6 * size).all()


@BITS
def test_both_ways_set_the_same(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    values, scales = coded((37, 96), bits)
    found = kept(values, scales, bits)
    monkeypatch.setattr(native_kernels, "library", lambda: None)
    twin = kept(values, scales, bits)
    assert torch.equal(found.weights, twin.weights)
    assert torch.equal(found.scales, twin.scales)


@BITS
def test_rows_come_in_pieces_and_as_parts_of_others(bits: int) -> None:
    values, scales = coded((70, 160), bits)
    pieces = empty(70, 96, bits, scales_dtype=torch.float16)
    for first in range(0, 70, 32):
        rows = slice(first, first + 32)
        set_codes(pieces, first, values[rows, 32:128], scales[rows, 1:4])
    assert torch.equal(dequantise(pieces), values[:, 32:128])


@BITS
@LEVELS
@SHAPES
@pytest.mark.parametrize("num_tokens", [0, 1, 2, 7, 8, 9, 21])
def test_products(bits: int, level: int, shape: tuple[int, int], num_tokens: int) -> None:
    matrix, x = kept(*coded(shape, bits), bits), numbers(num_tokens, shape[1], spread=8)
    assert_near(matmul(x, matrix, level), matmul_torch(x, matrix), x, matrix)


@BITS
@LEVELS
def test_the_largest_sums(bits: int, level: int) -> None:
    scales = torch.ones(ROWS, 2, dtype=torch.float16)
    for code in (-(1 << (bits - 1)), (1 << (bits - 1)) - 1):
        matrix = kept(torch.full((ROWS, 64), float(code)), scales, bits)
        for x in (1.0, -1.0):
            assert (matmul(torch.full((9, 64), x), matrix, level) == 64 * code * x).all()


@BITS
@LEVELS
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_gated_products(bits: int, level: int, activation: str) -> None:
    values, scales = coded((64, 96), bits)
    scales = scales.clamp(-1, 1)
    matrix = kept((values.unflatten(1, (3, 32)).sign() * scales.float()[..., None]).flatten(1), scales, bits)
    x = numbers(19, 96)
    gate, up = matmul(x, matrix, level).chunk(2, 1)
    act = torch.nn.functional.silu(gate) if activation == "silu" else torch.nn.functional.gelu(gate, approximate="tanh")
    torch.testing.assert_close(matmul(x, matrix, level, activation), act * up, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize(("kind", "bits"), [("Q8_0", 8), ("Q4_0", 4)])
def test_blocks_of_gguf(kind: str, bits: int) -> None:
    type_ = gguf.GGMLQuantizationType[kind]
    blocks = gguf.quants.quantize(numbers(40, 256, spread=6).numpy() * np.float32(1e-3), type_)
    values = torch.from_numpy(gguf.quants.dequantize(blocks, type_))
    bytes_of_block = gguf.GGML_QUANT_SIZES[type_][1]
    scales = torch.from_numpy(blocks.reshape(40, 8, bytes_of_block)[..., :2].copy().view(np.float16)[..., 0])
    assert bits == 8 or (scales < 0).any()
    assert torch.equal(dequantise(kept(values, scales, bits)), values)


@BITS
@WAYS
def test_what_is_not_exact_is_refused(bits: int, native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not native:
        monkeypatch.setattr(native_kernels, "library", lambda: None)
    middle, scales = 1 << (bits - 1), torch.full((20, 2), 0.5, dtype=torch.float16)
    scales[17, 1] = 0
    for place, bad in (((0, 0), middle), ((19, 63), -middle - 1), ((16, 31), 0.5), ((17, 40), 1.0), ((3, 3), 3e38)):
        values = torch.zeros(20, 64)
        values[place] = bad * 0.5
        with pytest.raises(NotExact):
            kept(values, scales, bits)
    for bad in (torch.nan, torch.inf, -torch.inf):
        values = torch.zeros(20, 64)
        values[18, 33] = bad
        with pytest.raises(NotFinite):
            kept(values, scales, bits)
        with pytest.raises(NotFinite):
            kept(torch.zeros(20, 64), scales.where(torch.arange(20)[:, None] != 18, bad), bits)


def test_only_whole_groups_of_a_matrix_with_such_scales() -> None:
    with pytest.raises(ValueError, match="multiple of 32"):
        set_codes(empty(16, 40, 8, scales_dtype=torch.float16), 0, torch.zeros(16, 40), torch.zeros(16, 2).half())
    with pytest.raises(ValueError, match="bfloat16"):
        set_codes(empty(16, 32, 8), 0, torch.zeros(16, 32), torch.zeros(16, 1).half())
    with pytest.raises(ValueError, match="float16"):
        set_rows(empty(16, 32, 8, scales_dtype=torch.float16), 0, torch.zeros(16, 32))
