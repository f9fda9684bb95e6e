"""The bytes of the exchange are those of the written format, in torch and in C at every level of instructions."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from support.codec_arithmetic import FP8, decoded, encoded
from torch import Tensor

from ollampi.kernels import native, ops
from ollampi.kernels.codec import NAMES, Codec, Reference, most_numbers, num_bytes
from ollampi.kernels.codecs import Native, codec_of

LEVELS = range(len(NAMES))
MAKERS: dict[str, Callable[[int], Codec]] = {
    "torch": Reference,
    **{native.LEVEL_NAMES[i]: lambda level, i=i: Native(level, i) for i in native.levels()},
}
ALL = pytest.mark.parametrize("maker", MAKERS.values(), ids=MAKERS.keys())
NATIVES = pytest.mark.parametrize("instructions", native.levels() or [None])
EVERY = pytest.mark.parametrize("level", LEVELS)
COUNTS = (0, 1, 15, 32, 33, 63, 511, 513, 2049, 4129)
HUGE = torch.finfo(torch.float32).max


def made(codec: Codec, x: Tensor) -> Tensor:
    """Return the codes of x [n], over bytes that were something else."""
    codes = torch.full((num_bytes(codec.level, len(x)),), 0xA5, dtype=torch.uint8)
    codec.encode(x, codes)
    return codes


def read(codec: Codec, parts: list[Tensor], count: int) -> Tensor:
    """Return the sum [count] of the parts."""
    out = torch.full((count,), 7.0)
    codec.decode_sum(parts, out)
    return out


def same(a: Tensor, b: Tensor) -> bool:
    """Return whether two vectors [n] in fp32 are the same bits; all NaNs count as one."""
    return torch.equal(*[x.view(torch.int32).masked_fill(x.isnan(), 0x7FC00000) for x in (a, b)])


def extremes(count: int, seed: int = 0) -> list[Tensor]:
    """Return vectors [count]: plain ones, ties, and what is at the ends of fp32."""
    random = torch.Generator().manual_seed(seed + count)
    normal, share = torch.randn(count, generator=random), torch.rand(count, generator=random)
    holes = torch.where(share < 0.03, math.nan, torch.where(share < 0.05, math.inf, normal))
    led = normal.clone()
    led[::32] = HUGE
    return [
        normal,
        normal * torch.exp(20 * torch.randn(count, generator=random)),
        torch.randint(-(2**31), 2**31 - 1, (count,), dtype=torch.int32, generator=random).view(torch.float32),
        torch.randint(-256, 257, (count,), generator=random) / 2,
        torch.where(share < 0.98, holes, -math.inf),
        torch.where(share < 0.5, -0.0, 0.0),
        torch.where(share < 0.5, -0.0, normal),
        normal * 2.0**-100,
        normal * 1e-40,
        (normal * 1e38).clamp(-HUGE, HUGE),
        led,
        torch.full((count,), 2.0**-100).nextafter(torch.tensor(0.0)) * normal.sign(),
        torch.full((count,), -HUGE),
    ]


HAND_MADE = [
    (0, [1.0, -2.5], "0000803f 000020c0"),
    (1, [1.0, -2.5, 1 + 2**-8, 1 + 3 * 2**-8, math.nan, -math.inf, -0.0], "803f 20c0 803f 823f c07f 80ff 0080"),
    (2, [127, -64, 0.5, 1.5, -2.5, -0.0], "7f c0 00 02 fe 00" + 26 * "00" + "803f"),
    (3, [448, -1, 2**-9, 1.0625, 1.1875, 2**-10, -0.0, -(2**-10)], "7e b8 01 38 3a 00 80 80" + 24 * "00" + "803f"),
    (4, [-8, 7, 7.75, -0.5, *[0] * 12, 0.5, 1.5, -1.5], "80 af 6f" + 13 * "88" + "803f"),
    (4, [8, -7, 3], "80 8f 85" + 13 * "88" + "80bf"),  # the scale is -1
    (4, [8, -8], "8f 80" + 14 * "88" + "803f"),  # of one size: the least decides
    (2, [1.0] * 33, 33 * "7e" + 31 * "00" + "023c 023c"),  # 1/127 is 0x3c010204, and the bf16 above it 0x3c02
    (3, [448.0] * 32 + [-896.0], 32 * "7e" + "fe" + 31 * "00" + "803f 0040"),
]
NO_CODES = [(2, 32 * "00"), (3, 32 * "00"), (4, 16 * "88")]


@ALL
@pytest.mark.parametrize(("level", "numbers", "written"), HAND_MADE)
def test_bytes_made_by_hand(maker: Callable[[int], Codec], level: int, numbers: list[float], written: str) -> None:
    assert bytes(made(maker(level), torch.tensor(numbers, dtype=torch.float32))) == bytes.fromhex(written)


@ALL
@pytest.mark.parametrize(("level", "zeros"), NO_CODES)
def test_groups_of_next_to_nothing_and_of_wrong_numbers(maker: Callable[[int], Codec], level: int, zeros: str) -> None:
    codec = maker(level)
    assert bytes(made(codec, torch.tensor([-(2.0**-101), 2.0**-102, -0.0]))) == bytes.fromhex(zeros + "0000")
    for wrong in (math.nan, -math.nan, math.inf, -math.inf):
        codes = made(codec, torch.tensor([-3.0, wrong, 2.0, *[0.0] * 29, 1.0]))
        assert bytes(codes[: len(zeros) // 2]) == bytes.fromhex(zeros)
        assert bytes(codes[-4:-2]) == bytes.fromhex("c07f")
        assert read(codec, [codes], 33).isnan().tolist() == [*[True] * 32, False]


@EVERY
@pytest.mark.parametrize("count", [1, 33, 100])
def test_the_reference_is_arithmetic_on_single_numbers(level: int, count: int) -> None:
    codec = Reference(level)
    for x in extremes(count):
        with np.errstate(all="ignore"):
            codes = encoded(x.numpy(), level)
            assert bytes(made(codec, x).numpy()) == codes
            numbers = torch.from_numpy(decoded(codes, count, level).copy())
        assert same(read(codec, [made(codec, x)], count), numbers)


@NATIVES
@EVERY
def test_c_makes_the_bits_of_the_reference(instructions: int | None, level: int) -> None:
    if instructions is None:
        pytest.skip("the package was built without a compiler")
    codec, reference = Native(level, instructions), Reference(level)
    for count in COUNTS:
        numbers = extremes(count)
        vectors = [made(reference, x) for x in numbers]
        assert [bytes(made(codec, x).numpy()) for x in numbers] == [bytes(codes.numpy()) for codes in vectors]
        for parts in (vectors[:1], vectors[1:2], vectors[:2], vectors[-3:], vectors[4:7]):
            assert same(read(codec, parts, count), read(reference, parts, count))


@NATIVES
@EVERY
def test_many_threads_and_stores_past_the_caches_change_no_bit(instructions: int | None, level: int) -> None:
    if instructions is None:
        pytest.skip("the package was built without a compiler")
    codec, reference = Native(level, instructions), Reference(level)
    x, count = torch.randn(2**21 + 50), 2**21 + 45
    for first in (0, 5):  # where the result begins: at a vector's boundary, or not
        codes = made(codec, x[first : first + count])
        assert torch.equal(codes, made(reference, x[first : first + count]))
        for parts in ([codes], [codes, codes.flip(0) & 0x3F, codes]):
            out = torch.empty(2**21 + 50)[first : first + count]
            codec.decode_sum(parts, out)
            assert same(out, read(reference, parts, count))


@ALL
@EVERY
def test_sums_are_in_the_order_of_their_parts(maker: Callable[[int], Codec], level: int) -> None:
    codec = maker(level)
    parts = [made(codec, size * torch.randn(70)) for size in (1.0, 1e8, 1e4, 1e-3)] * 3
    for order in (parts, parts[::-1], parts[3:] + parts[:3]):
        expected = read(codec, order[:1], 70)
        for part in order[1:]:
            expected = expected + read(codec, [part], 70)
        assert same(read(codec, order, 70), expected)
    assert not same(read(codec, parts, 70), read(codec, parts[::-1], 70))


@ALL
@EVERY
def test_a_thousand_parts(maker: Callable[[int], Codec], level: int) -> None:
    codec = maker(level)
    part = made(codec, torch.full((40,), 0.5))
    assert read(codec, [part] * 1024, 40).tolist() == (1024 * read(codec, [part], 40)).tolist()


@ALL
@EVERY
@pytest.mark.parametrize("count", [0, 1, 32, 45, 5000])
def test_recoding_is_decoding_and_encoding(maker: Callable[[int], Codec], level: int, count: int) -> None:
    codec = maker(level)
    parts = [made(codec, torch.randn(count)) for _ in range(3)]
    expected = made(codec, read(codec, parts, count))
    codes = torch.full_like(expected, 0xA5)
    codec.recode(parts, codes)
    assert torch.equal(codes, expected)
    codec.recode(parts, parts[1])
    assert torch.equal(parts[1], expected)


@ALL
@EVERY
@pytest.mark.parametrize("shape", [(1, 64), (5, 96), (3, 33), (1, 1), (40, 4096), (70, 2050), (0, 32)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sum_residual_and_norm(
    maker: Callable[[int], Codec], level: int, shape: tuple[int, int], dtype: torch.dtype
) -> None:
    codec, count = maker(level), math.prod(shape)
    parts = [made(codec, torch.randn(count)) for _ in range(3)]
    residual, weight, normed = torch.randn(shape), torch.randn(shape[1]).to(dtype), torch.full(shape, math.nan)
    expected = residual + read(codec, parts, count).view(shape)
    codec.decode_sum_norm(parts, residual, weight, 1e-5, normed)
    assert torch.equal(residual, expected)
    wide = expected.double()
    scaled = wide / (wide.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
    torch.testing.assert_close(normed.double(), scaled, rtol=1e-5, atol=1e-6)
    if isinstance(codec, Native) and maker is MAKERS[native.LEVEL_NAMES[native.level()]]:
        assert torch.equal(normed, ops.rms_norm(residual, weight, 1e-5))


@EVERY
def test_what_is_read_is_near_to_what_was_written(level: int) -> None:
    codec = codec_of(level, torch.device("cpu"))
    x = torch.randn(320) * torch.logspace(-6, 6, 320)
    error = (read(codec, [made(codec, x)], 320) - x).view(-1, 32).abs()
    sizes, largest = x.view(-1, 32).abs(), x.view(-1, 32).abs().amax(-1, keepdim=True)
    step = largest * {0: 0.0, 1: 0.0, 2: 1 / 127, 3: 2**-9 / 448, 4: 1 / 8}[level] * (1 + 2**-7)
    relative = {1: 2**-8, 3: 2**-4}.get(level, 0.0)
    bound = step if level == 4 else torch.maximum(step / 2, sizes * relative * (1 + 2**-7))
    assert (error <= bound).all()


@EVERY
def test_sizes(level: int) -> None:
    assert [num_bytes(level, n) for n in (0, 1, 32, 33)] == [
        [0, 4, 128, 132],
        [0, 2, 64, 66],
        [0, 34, 34, 68],
        [0, 34, 34, 68],
        [0, 18, 18, 36],
    ][level]
    for count in (0, 1, 31, 32, 33, 100):
        filled = count if level < 2 else -(-count // 32) * 32
        assert most_numbers(level, num_bytes(level, count)) == filled


def test_the_codec_of_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(codec_of(2, torch.device("cpu")), Native if native.library() is not None else Reference)
    assert isinstance(codec_of(2, torch.device("meta")), Reference)
    monkeypatch.setattr(native, "library", lambda: None)
    assert isinstance(codec_of(2, torch.device("cpu")), Reference)


def test_the_table_of_fp8_is_that_of_torch() -> None:
    assert FP8.tolist() == torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).double().tolist()
