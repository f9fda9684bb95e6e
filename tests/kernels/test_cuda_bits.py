"""The CUDA kernels make the bits of the reference: as C++ in an emulation of blocks, warps and shuffles."""

from __future__ import annotations

import ctypes
import random
from collections.abc import Callable
from mmap import PAGESIZE, mmap

import pytest
import torch
from support.fake_cupy import FakeCupy, install, needs_compiler
from torch import Tensor

from ollampi.kernels.codec import GROUP, Reference, num_bytes
from ollampi.kernels.gpu import CudaCodec
from ollampi.kernels.ops import rms_norm_torch

pytestmark = needs_compiler
LEVELS = range(5)
TILE = 512
COUNTS = [1, 31, 32, 33, 64, 511, TILE, TILE + 1, 5 * TILE - 3, 4 * 8 * 4 * TILE + 2 * TILE + 5]
EDGES = [0.0, -0.0, 1e-45, -1e-45, 2.0**-126, 2.0**-101, 2.0**-100, -(2.0**-100), 1.0, -1.0, 3.4e38, -3.4e38]


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeCupy:
    return install(monkeypatch)


def codec(level: int) -> CudaCodec:
    return CudaCodec(level, torch.device("cuda", 0))


def numbers(count: int, seed: int = 0) -> Tensor:
    """Return numbers [count] of many sizes, ties between codes and groups of zeros among them."""
    chance = torch.Generator().manual_seed(seed)
    x = torch.randn(count, generator=chance)
    groups = torch.arange(count) // GROUP
    x *= 2.0 ** ((groups * 37 + seed) % 61 - 30)
    halves = (torch.randint(-255, 256, (count,), generator=chance).float() / 2).clamp(-127, 127)
    x = torch.where(groups % 5 == 1, halves, x)
    return torch.where(groups % 7 == 6, torch.full_like(x, -1e-33), x)


def encoded(by: Reference | CudaCodec, x: Tensor) -> Tensor:
    codes = torch.full((num_bytes(by.level, len(x)),), 0xAA, dtype=torch.uint8)
    by.encode(x, codes)
    return codes


def same(a: Tensor, b: Tensor) -> bool:
    """Return whether two vectors in fp32 have the same bits, any NaN counting as one."""
    return bool(((a.view(torch.int32) == b.view(torch.int32)) | (a.isnan() & b.isnan())).all())


def misplaced(x: Tensor, by: int = 1) -> Tensor:
    """Return x [n] so many elements behind where an allocation begins."""
    room = torch.empty(len(x) + by, dtype=x.dtype)
    room[by:] = x
    return room[by:]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("count", COUNTS)
def test_vectors_of_any_length_become_the_same_bytes(level: int, count: int) -> None:
    x = numbers(count, level)
    assert torch.equal(encoded(codec(level), x), encoded(Reference(level), x))


def at_the_edge(size: int, dtype: torch.dtype = torch.uint8) -> Tensor:
    """Return zeros [size] behind whose last byte a page begins that nobody may touch: who does ends the process."""
    pages = -(-size * dtype.itemsize // PAGESIZE)
    memory = mmap(-1, (pages + 1) * PAGESIZE)
    room = torch.frombuffer(memory, dtype=torch.uint8)
    nobodys = ctypes.c_void_p(room.data_ptr() + pages * PAGESIZE)
    assert ctypes.CDLL(None).mprotect(nobodys, ctypes.c_size_t(PAGESIZE), 0) == 0
    end = pages * PAGESIZE
    return room[end - size * dtype.itemsize : end].view(dtype)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("count", [1, 31, 33, 100, TILE, TILE + 36, 3 * TILE + 4])
def test_nothing_is_read_or_written_behind_the_end_of_a_page(level: int, count: int) -> None:
    x, out = at_the_edge(count, torch.float32), at_the_edge(count, torch.float32)
    codes, again = at_the_edge(num_bytes(level, count)), at_the_edge(num_bytes(level, count))
    x.copy_(numbers(count))
    codec(level).encode(x, codes)
    codec(level).decode_sum([codes, codes], out)
    codec(level).recode([codes, codes], again)
    if count % 4 == 0:
        normed, weight = at_the_edge(count, torch.float32), at_the_edge(count, torch.bfloat16)
        codec(level).decode_sum_norm([codes, codes], out.view(1, -1), weight, 1e-5, normed.view(1, -1))
    assert torch.equal(codes, encoded(Reference(level), x))


@pytest.mark.parametrize("level", LEVELS)
def test_nothing_is_written_behind_the_end(level: int) -> None:
    for count in (1, 33, TILE + 1):
        room = torch.full((num_bytes(level, count) + 64,), 0xAA, dtype=torch.uint8)
        codec(level).encode(numbers(count), room[:-64])
        out = torch.full((count + 16,), -7.0)
        codec(level).decode_sum([room[:-64]], out[:-16])
        codec(level).recode([room[:-64]], room[:-64])
        assert (room[-64:] == 0xAA).all()
        assert (out[-16:] == -7.0).all()


@pytest.mark.parametrize("level", LEVELS)
def test_special_values_become_the_same_bytes(level: int) -> None:
    chance = random.Random(level)
    special = [float("nan"), float("inf"), float("-inf")]
    groups = [[edge] * GROUP for edge in EDGES + special]
    groups += [[chance.choice(EDGES[:10]) for _ in range(GROUP)] for _ in range(20)]
    groups += [[chance.choice(EDGES + special) for _ in range(GROUP)] for _ in range(20)]
    groups += [[0.0] * (GROUP - 1) + [edge] for edge in EDGES + special]
    x = torch.tensor(groups).flatten()
    assert torch.equal(encoded(codec(level), x), encoded(Reference(level), x))
    bits = torch.randint(-(2**31), 2**31, (4 * TILE,), generator=torch.Generator().manual_seed(level))
    x = bits.to(torch.int32).view(torch.float32)
    x[:TILE].nan_to_num_(1.0, 1.0, 1.0)
    assert torch.equal(encoded(codec(level), x), encoded(Reference(level), x))


def test_every_number_between_two_codes_of_fp8_is_rounded_alike() -> None:
    codes = torch.arange(0x7F, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    middles = (codes[1:] + codes[:-1]) / 2
    near = torch.cat([middles, middles.nextafter(torch.tensor(0.0)), middles.nextafter(torch.tensor(999.0)), codes])
    near = torch.cat([near, -near])
    rows = near.view(-1, 1)
    x = torch.cat([rows, torch.full((len(rows), GROUP - 1), 448.0)], dim=1).flatten()  # so that the scale is 1
    assert torch.equal(encoded(codec(3), x), encoded(Reference(3), x))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("parts", [1, 2, 3, 4, 7])
def test_sums_have_the_same_bits(level: int, parts: int) -> None:
    for count in (1, 33, TILE, 3 * TILE + 100):
        given = [encoded(Reference(level), numbers(count, 10 * level + r)) for r in range(parts)]
        ours, expected = torch.empty(count), torch.empty(count)
        codec(level).decode_sum(given, ours)
        Reference(level).decode_sum(given, expected)
        assert same(ours, expected)


@pytest.mark.parametrize("level", LEVELS)
def test_any_bytes_read_alike(level: int) -> None:
    chance = torch.Generator().manual_seed(level)
    for count in (256 * GROUP, 1000):
        given = [
            torch.randint(0, 256, (num_bytes(level, count),), generator=chance, dtype=torch.uint8) for _ in range(2)
        ]
        ours, expected = torch.empty(count), torch.empty(count)
        codec(level).decode_sum(given, ours)
        Reference(level).decode_sum(given, expected)
        assert same(ours, expected)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("away", [1, 2, 3])
def test_what_is_not_aligned_gives_the_same_bits(level: int, away: int) -> None:
    count = 2 * TILE + 7
    x = misplaced(numbers(count), away)
    codes = misplaced(torch.zeros(num_bytes(level, count), dtype=torch.uint8), away)
    codec(level).encode(x, codes)
    assert torch.equal(codes, encoded(Reference(level), x))
    part = codes.clone()  # the reference takes no vector of fp32 or bf16 that begins elsewhere
    ours, expected = misplaced(torch.empty(count), away), torch.empty(count)
    codec(level).decode_sum([codes, part], ours)
    Reference(level).decode_sum([part, part], expected)
    assert same(ours, expected)
    codec(level).recode([codes, part], codes)
    whole = torch.empty_like(part)
    Reference(level).recode([part, part], whole)
    assert torch.equal(codes, whole)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("place", ["first", "last", "elsewhere"])
def test_sums_are_encoded_again_also_in_the_place_of_a_part(level: int, place: str) -> None:
    count = 5 * TILE + 77
    parts = [encoded(Reference(level), numbers(count, r)) for r in range(3)]
    expected = torch.empty_like(parts[0])
    Reference(level).recode(parts, expected)
    codes = {"first": parts[0], "last": parts[-1], "elsewhere": torch.empty_like(expected)}[place]
    codec(level).recode(parts, codes)
    assert torch.equal(codes, expected)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("tokens", "width"), [(1, 4), (3, 36), (2, 256), (1, 4100)])
def test_the_residual_has_the_same_bits_and_the_norm_is_near(
    level: int, dtype: torch.dtype, tokens: int, width: int
) -> None:
    parts = [encoded(Reference(level), torch.randn(tokens * width)) for _ in range(3)]
    residual, weight = torch.randn(tokens, width), torch.rand(width).to(dtype)
    expected, normed, theirs = residual.clone(), torch.empty_like(residual), torch.empty_like(residual)
    Reference(level).decode_sum_norm(parts, expected, weight, 1e-5, theirs)
    codec(level).decode_sum_norm(parts, residual, weight, 1e-5, normed)
    assert same(residual, expected)
    exact = rms_norm_torch(expected.double(), weight, 1e-5)
    assert torch.allclose(normed, exact.float(), rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("spoil", [lambda t: t[:, :-1].contiguous(), lambda t: misplaced(t.flatten()).view(t.shape)])
def test_norms_that_the_kernel_does_not_take_go_through_torch(
    spoil: Callable[[Tensor], Tensor], fake: FakeCupy
) -> None:
    residual = spoil(torch.randn(3, 64))
    parts = [encoded(Reference(2), torch.randn(residual.numel())) for _ in range(2)]
    weight = torch.rand(residual.shape[1])
    expected, theirs = residual.clone(), torch.empty(residual.shape)
    Reference(2).decode_sum_norm(parts, expected, weight, 1e-5, theirs)
    normed = torch.empty(residual.shape)
    codec(2).decode_sum_norm(parts, residual, weight, 1e-5, normed)
    assert same(residual, expected)
    assert torch.equal(normed, theirs)
    assert fake.launches == []
