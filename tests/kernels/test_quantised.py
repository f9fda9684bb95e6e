"""Quantised matrices keep what their format says, and every way to multiply by them gives the same."""

from __future__ import annotations

import pytest
import torch
from support.arithmetic import DRAW, assert_near, numbers, threads

from ollampi.kernels import native as native_kernels
from ollampi.kernels.groups import GROUP
from ollampi.kernels.native import levels
from ollampi.kernels.quantised import (
    NotFinite,
    dequantise,
    empty,
    matmul,
    matmul_torch,
    quantise,
    quantise_torch,
    rounded,
    set_rows,
    take_rows,
    take_rows_torch,
)

BITS = pytest.mark.parametrize("bits", [8, 4])
LEVELS = pytest.mark.parametrize("level", levels())
SHAPES = [(1, 1), (1, 32), (16, 32), (17, 33), (15, 31), (100, 70), (48, 256), (33, 1000)]


@BITS
@pytest.mark.parametrize("shape", SHAPES)
def test_a_group_is_off_by_no_more_than_rounding_takes(bits: int, shape: tuple[int, int]) -> None:
    weight = numbers(*shape, spread=10)
    kept = dequantise(quantise(weight, bits))
    assert kept.shape == weight.shape
    for row in range(shape[0]):
        for first in range(0, shape[1], GROUP):
            exact, found = weight[row, first : first + GROUP], kept[row, first : first + GROUP]
            step = exact.abs().max() / (127 if bits == 8 else 8)
            if bits == 8:
                assert ((exact - found).abs() <= step * 0.51 + 2**-8 * exact.abs()).all()
            else:  # as good as a scale that makes the largest -8, whose numbers end at +7 on the other side
                cut = torch.where(exact.sign() == exact[exact.abs().argmax()].sign(), 0.5, 1.0)
                assert (exact - found).norm() <= (step * cut * 1.02 + 2**-8 * exact.abs()).norm()


@BITS
def test_both_ways_to_quantise_are_as_good(bits: int) -> None:
    weight = numbers(100, 1000, spread=6)
    native, twin = dequantise(quantise(weight, bits)), dequantise(quantise_torch(weight, bits))
    if bits == 8:
        assert torch.equal(native, twin)
    assert (native == twin).float().mean() > 0.999
    assert float((native - weight).norm()) == pytest.approx(float((twin - weight).norm()), rel=1e-5)


@BITS
def test_what_the_format_holds_is_kept_exactly(bits: int) -> None:
    low, high = (-127, 127) if bits == 8 else (-8, 7)
    whole = torch.randint(low, high + 1, (32, 96), generator=DRAW).float()
    whole.unflatten(1, (3, 32))[:, :, 5] = low
    scales = torch.randint(-20, 20, (32, 3, 1), generator=DRAW).float().exp2()
    weight = (whole.unflatten(1, (3, 32)) * scales).flatten(1)
    assert torch.equal(dequantise(quantise(weight, bits)), weight)


@BITS
def test_rows_and_groups_do_not_know_of_each_other(bits: int) -> None:
    weight = numbers(40, 128)
    whole = dequantise(quantise(weight, bits))
    assert torch.equal(dequantise(quantise(weight[7:29], bits)), whole[7:29])
    assert torch.equal(dequantise(quantise(weight[:, 32:96], bits)), whole[:, 32:96])


@BITS
@pytest.mark.parametrize("value", [0.0, -0.0, 1e-45, -1e-40, 1e-30, 3e38, -3e38])
def test_the_ends_of_the_range(bits: int, value: float) -> None:
    weight = numbers(16, 64)
    weight[3, :32] = value
    kept = dequantise(quantise(weight, bits))
    assert kept.isfinite().all()
    if abs(value) >= 1e-30:
        assert ((kept[3, :32] - value).abs() <= abs(value) * 0.005).all()
    else:
        assert (kept[3, :32].abs() <= 1e-39).all()


@BITS
@pytest.mark.parametrize("shape", SHAPES)
def test_rows_can_be_set_in_pieces_and_taken_one_by_one(bits: int, shape: tuple[int, int]) -> None:
    weight = numbers(*shape)
    whole, pieces = quantise(weight, bits), empty(*shape, bits)
    for first in range(0, shape[0], 32):
        set_rows(pieces, first, weight[first : first + 32])
    assert torch.equal(pieces.weights, whole.weights)
    assert torch.equal(pieces.scales, whole.scales)
    wanted = torch.randint(0, shape[0], (7,), generator=DRAW)
    assert torch.equal(take_rows(whole, wanted), dequantise(whole)[wanted])
    assert torch.equal(take_rows_torch(whole, wanted), dequantise(whole)[wanted])
    assert take_rows(whole, wanted[:0]).shape == (0, shape[1])


@BITS
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_rows_can_have_any_dtype_and_be_parts_of_others(bits: int, shape: tuple[int, int], dtype: torch.dtype) -> None:
    around = numbers(shape[0] + 3, shape[1] + 50).to(dtype)
    rows = around[2:-1, 7:-43]
    found, expected = quantise(rows, bits), quantise(rows.float().contiguous(), bits)
    assert torch.equal(found.weights, expected.weights)
    assert torch.equal(found.scales, expected.scales)
    across = quantise(rows.T.contiguous().T, bits)
    assert torch.equal(across.weights, expected.weights)


@BITS
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("native", [True, False])
def test_what_is_not_finite_is_refused(
    bits: int, bad: float, dtype: torch.dtype, native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not native:
        monkeypatch.setattr(native_kernels, "library", lambda: None)
    for place in ((0, 0), (33, 70), (16, 31)):
        weight = numbers(34, 71).to(dtype)
        weight[place] = bad
        with pytest.raises(NotFinite):
            quantise(weight, bits)
    with pytest.raises(NotFinite):
        quantise(torch.full((1, 1), 1e300, dtype=torch.float64), bits)


@BITS
def test_memory(bits: int) -> None:
    matrix = quantise(numbers(256, 512), bits)
    assert matrix.nbytes * 8 == 256 * 512 * (bits + 0.5)


@BITS
@LEVELS
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("num_tokens", [0, 1, 2, 7, 8, 9, 21])
def test_products(bits: int, level: int, shape: tuple[int, int], num_tokens: int) -> None:
    matrix, x = quantise(numbers(*shape, spread=4), bits), numbers(num_tokens, shape[1], spread=8)
    assert_near(matmul(x, matrix, level), matmul_torch(x, matrix), x, matrix)


@BITS
def test_the_twin_is_the_product_of_rounded_factors(bits: int) -> None:
    matrix, x = quantise(numbers(48, 96), bits), numbers(5, 96)
    assert torch.equal(matmul_torch(x, matrix), rounded(x) @ dequantise(matrix).T)
    assert ((rounded(x) - x).abs().unflatten(1, (3, 32)).amax(2) <= x.abs().unflatten(1, (3, 32)).amax(2) / 253).all()


@BITS
@LEVELS
def test_extreme_activations(bits: int, level: int) -> None:
    matrix = quantise(numbers(16, 96), bits)
    x = numbers(6, 96)
    x[0], x[1, :32], x[2] = 0.0, 1e-45, 1e-31
    x[3, 5], x[4, 40] = 1e30, -1e30
    assert_near(matmul(x, matrix, level), matmul_torch(x, matrix), x, matrix)
    assert (matmul(x, matrix, level)[[0, 2]] == 0).all()


@BITS
@LEVELS
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_shows_in_its_own_token_alone(bits: int, level: int, bad: float) -> None:
    matrix, x = quantise(numbers(20, 96), bits), numbers(9, 96)
    alone = matmul(x, matrix, level)
    x[4, 50] = bad
    found = matmul(x, matrix, level)
    assert found[4].isnan().all()
    assert matmul_torch(x, matrix)[4].isnan().all()
    found[4] = alone[4]
    assert torch.equal(found, alone)


@BITS
@LEVELS
def test_a_token_is_computed_alike_in_any_batch(bits: int, level: int) -> None:
    matrix, x = quantise(numbers(40, 160), bits), numbers(19, 160)
    together = matmul(x, matrix, level)
    for token in range(19):
        assert torch.equal(matmul(x[token : token + 1], matrix, level)[0], together[token])
    assert torch.equal(matmul(x[3:14], matrix, level), together[3:14])


@pytest.mark.skipif(not levels(), reason="the native kernels were not built")
@BITS
def test_threads_change_nothing(bits: int) -> None:
    matrix, x = quantise(numbers(200, 64), bits), numbers(10, 64)
    alone = matmul(x, matrix)
    with threads(3):
        assert torch.equal(matmul(x, matrix), alone)
