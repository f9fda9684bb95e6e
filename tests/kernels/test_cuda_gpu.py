"""kernels/gpu.py starts the right kernels, where and with what torch says; on a GPU, and before a fake of it."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from support.fake_cupy import MULTIPROCESSORS, FakeCupy, install

from ollampi.kernels import gpu
from ollampi.kernels.codec import GROUP, Reference, num_bytes
from ollampi.kernels.codecs import codec_of
from ollampi.kernels.gpu import CudaCodec

LEVELS = range(5)
TILE = 512
DEVICE = torch.device("cuda", 0)
needs_gpu = pytest.mark.skipif(
    not torch.cuda.is_available() or gpu.lacking() is not None,
    reason="there is no CUDA device" if not torch.cuda.is_available() else str(gpu.lacking()),
)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeCupy:
    return install(monkeypatch, emulated=False)


def codes_of(level: int, count: int) -> torch.Tensor:
    return torch.zeros(num_bytes(level, count), dtype=torch.uint8)


def test_constants_are_those_of_the_kernels() -> None:
    text = (Path(gpu.__file__).parent / "cuda" / "codec.cu").read_text()
    told = {name: int(value) for name, value in re.findall(r"#define ([A-Z_]+) (\d+)", text)}
    assert told == {
        "BLOCK_THREADS": gpu._BLOCK_THREADS,
        "BLOCKS_AT_ONCE": gpu._BLOCKS_AT_ONCE,
        "MOST_PARTS": gpu._MOST_PARTS,
        "MOST_THREADS": gpu._MOST_THREADS,
    }
    assert re.search(r"WARP = 32, ROUNDS = 4, ROUND = 4 \* WARP, TILE = ROUNDS \* ROUND", text)
    assert (gpu._WARP, gpu._TILE) == (32, 4 * 4 * 32)


def test_encode_gives_the_kernel_the_pointers_and_torchs_stream(fake: FakeCupy) -> None:
    x, codes = torch.zeros(3 * TILE), codes_of(2, 3 * TILE)
    CudaCodec(2, torch.device("cuda", 1)).encode(x, codes)
    (launch,) = fake.launches
    assert (launch.name, launch.blocks, launch.threads) == ("encode_2", 1, 128)
    assert launch.arguments == (x.data_ptr(), 3 * TILE, codes.data_ptr())
    assert [type(a) for a in launch.arguments] == [np.uint64, np.int64, np.uint64]
    assert (launch.device, launch.stream) == (1, 77)
    assert fake.devices == fake.streams == []


@pytest.mark.parametrize(
    ("count", "blocks"),
    [(1, 1), (TILE, 1), (4 * TILE, 1), (4 * TILE + 1, 2), (9 * TILE, 3), (10**6, 8 * MULTIPROCESSORS)],
)
def test_grids_have_a_warp_for_each_tile_up_to_what_runs_at_once(fake: FakeCupy, count: int, blocks: int) -> None:
    CudaCodec(3, DEVICE).decode_sum([codes_of(3, count)], torch.zeros(count))
    assert fake.launches[0].blocks == blocks


def test_parts_travel_by_value(fake: FakeCupy) -> None:
    parts, out = [codes_of(4, 100) for _ in range(3)], torch.zeros(100)
    CudaCodec(4, DEVICE).decode_sum(parts, out)
    places, count, *rest = fake.launches[0].arguments
    assert places.nbytes == 8 * 128
    assert places["at"][0, :3].tolist() == [part.data_ptr() for part in parts]
    assert (count, *rest) == (3, 100, out.data_ptr())
    assert count.dtype == np.int32


def test_recoding_takes_all_of_the_last_group(fake: FakeCupy) -> None:
    part = codes_of(2, 33)
    CudaCodec(2, DEVICE).recode([part], part)
    assert fake.launches[0].name == "recode_2"
    assert fake.launches[0].arguments[2:] == (2 * GROUP, part.data_ptr())


@pytest.mark.parametrize(("width", "threads"), [(4, 32), (128, 32), (132, 64), (4096, 1024), (16384, 1024)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norms_have_a_block_for_each_row(fake: FakeCupy, width: int, threads: int, dtype: torch.dtype) -> None:
    residual, normed = torch.zeros(5, width), torch.zeros(5, width)
    weight = torch.zeros(width, dtype=dtype)
    CudaCodec(2, DEVICE).decode_sum_norm([codes_of(2, 5 * width)], residual, weight, 1e-6, normed)
    (launch,) = fake.launches
    assert (launch.name, launch.blocks, launch.threads) == ("decode_sum_norm_2", 5, threads)
    places = (residual.data_ptr(), weight.data_ptr(), dtype == torch.bfloat16, np.float32(1e-6), width)
    assert launch.arguments[2:] == (*places, normed.data_ptr())
    assert [a.dtype.itemsize for a in launch.arguments[1:]] == [4, 8, 8, 4, 4, 8, 8]


def test_nothing_is_started_for_nothing(fake: FakeCupy) -> None:
    codec = CudaCodec(2, DEVICE)
    codec.encode(torch.empty(0), codes_of(2, 0))
    codec.decode_sum([codes_of(2, 0)], torch.empty(0))
    codec.decode_sum_norm([codes_of(2, 0)], torch.empty(0, 8), torch.zeros(8), 1e-6, torch.empty(0, 8))
    assert fake.launches == []


def test_more_parts_than_a_kernel_takes_are_added_by_torch(fake: FakeCupy) -> None:
    parts = [codes_of(1, 40) for _ in range(129)]
    Reference(1).encode(torch.ones(40), parts[-1])
    out = torch.empty(40)
    CudaCodec(1, DEVICE).decode_sum(parts, out)
    assert torch.equal(out, torch.ones(40))
    CudaCodec(1, DEVICE).recode(parts, parts[0])
    assert torch.equal(parts[0], parts[-1])
    assert fake.launches == []


def test_kernels_are_compiled_once_for_each_level_and_device(fake: FakeCupy) -> None:
    for level, index in [(2, 0), (2, 0), (2, 1), (3, 0), (3, 0)]:
        CudaCodec(level, torch.device("cuda", index))
    CudaCodec(2, torch.device("cuda"))  # the current one, which is 0
    assert fake.compiled == [(gpu.source(), gpu.OPTIONS)] * 3


def test_a_failed_compilation_is_told_and_tried_again(fake: FakeCupy, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(code: str, options: tuple[str, ...]) -> None:
        raise RuntimeError("nvrtc: error")

    with monkeypatch.context() as m:
        m.setattr(fake, "RawModule", refuse)
        with pytest.raises(RuntimeError, match="nvrtc: error"):
            CudaCodec(2, DEVICE)
    CudaCodec(2, DEVICE)
    assert fake.devices == []


def test_without_cupy_the_reason_is_known_and_torch_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert "pip install -e '.[cuda]'" in str(gpu.lacking())
    assert isinstance(codec_of(2, DEVICE), Reference)
    with pytest.raises(ImportError):
        CudaCodec(2, DEVICE)


def test_a_cuda_device_gets_the_kernels_and_a_cpu_does_not(fake: FakeCupy) -> None:
    assert gpu.lacking() is None
    assert isinstance(codec_of(2, DEVICE), CudaCodec)
    assert not isinstance(codec_of(2, torch.device("cpu")), CudaCodec)


@needs_gpu
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("count", [1, 33, 4096, 1_000_003])
def test_on_a_gpu_the_twins_agree_bit_for_bit(level: int, count: int) -> None:
    chance = torch.Generator().manual_seed(count)
    vectors = [torch.randn(count, generator=chance) * 2.0 ** (r - 30 * (r % 2)) for r in range(3)]
    vectors[0][count // 2] = float("nan")
    ours, theirs = CudaCodec(level, DEVICE), Reference(level)
    parts, expected = [], []
    for x in vectors:
        parts.append(codes_of(level, count).to(DEVICE))
        expected.append(codes_of(level, count))
        ours.encode(x.to(DEVICE), parts[-1])
        theirs.encode(x, expected[-1])
        assert torch.equal(parts[-1].cpu(), expected[-1])
    out, total = torch.empty(count, device=DEVICE), torch.empty(count)
    ours.decode_sum(parts, out)
    theirs.decode_sum(expected, total)
    assert torch.equal(out.cpu().isnan(), total.isnan())
    assert torch.equal(out.cpu().nan_to_num().view(torch.int32), total.nan_to_num().view(torch.int32))
    ours.recode(parts, parts[0])
    theirs.recode(expected, expected[0])
    assert torch.equal(parts[0].cpu(), expected[0])


@needs_gpu
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("tokens", "width"), [(1, 4096), (7, 100), (3, 33)])
def test_on_a_gpu_the_residual_agrees_bit_for_bit(level: int, tokens: int, width: int) -> None:
    parts = [codes_of(level, tokens * width) for _ in range(2)]
    for part in parts:
        Reference(level).encode(torch.randn(tokens * width), part)
    residual, weight = torch.randn(tokens, width), torch.rand(width).bfloat16()
    given = [residual.to(DEVICE), weight.to(DEVICE), torch.empty(tokens, width, device=DEVICE)]
    normed = torch.empty(tokens, width)
    CudaCodec(level, DEVICE).decode_sum_norm([p.to(DEVICE) for p in parts], given[0], given[1], 1e-5, given[2])
    Reference(level).decode_sum_norm(parts, residual, weight, 1e-5, normed)
    assert torch.equal(given[0].cpu(), residual)
    assert torch.allclose(given[2].cpu(), normed, rtol=2e-6, atol=1e-7)
