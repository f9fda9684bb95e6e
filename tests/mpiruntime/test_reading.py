"""Whoever reads the files, ranks get the same weights; what goes wrong on one rank ends the load on all."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.adapters import write_adapter
from support.checkpoints import FAMILIES, PROMPT, reference_logits, write_checkpoint
from support.gguf_files import write_gguf
from support.packers import quantised
from support.worlds import lead, load_message, logits_in_pieces

from ollampi.kernels import pages
from ollampi.mpiruntime import reading, slices
from ollampi.mpiruntime.checkpoint import open_checkpoint
from ollampi.mpiruntime.communicator import Communicator, Single
from ollampi.mpiruntime.errors import CheckpointError, ModelError
from ollampi.mpiruntime.load_report import LoadReport
from ollampi.mpiruntime.reading import Files
from ollampi.mpiruntime.runner import Runner
from ollampi.mpiruntime.step import Unload
from ollampi.mpiruntime.thread_world import run_threads
from ollampi.mpiruntime.weights import Loaded

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")  # of PEFT and transformers

PIECES = [9, 1, 5, 1, 1]
NAMES = threading.local()  # .rank: of the thread


def on_ranks(size: int, work: Callable[[Runner], Any]) -> Any:
    """Return what rank 0 makes of a world whose threads know their ranks."""

    def rank_main(comm: Communicator) -> Any:
        NAMES.rank = comm.rank
        return lead(comm, work)

    return run_threads(size, rank_main)[0]


def loaded(folder: Path, size: int, **fields: Any) -> tuple[list[LoadReport], torch.Tensor]:
    """Return what the ranks hold and the logits of a prompt."""

    def work(runner: Runner) -> tuple[list[LoadReport], torch.Tensor]:
        reports = runner.lead_load(load_message(folder, **fields))
        return reports, logits_in_pieces(runner, PROMPT, PIECES)

    found: tuple[list[LoadReport], torch.Tensor] = on_ranks(size, work)
    return found


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("llama3", {}),
        ("llama3", {"dtype": "bfloat16"}),
        ("llama3", {"quantize": "q8"}),
        ("llama3", {"deterministic": True}),
        ("biases", {}),
        ("wide_heads", {}),
        ("phi3", {}),
        ("mixtral", {}),
        ("mixtral", {"experts": "spread"}),
        ("qwen3_moe", {"experts": "spread", "dtype": "bfloat16"}),
    ],
)
def test_rank_0_may_read_for_all(tmp_path: Path, family: str, fields: dict[str, Any]) -> None:
    folder = write_checkpoint(tmp_path / "m", **FAMILIES[family])
    for size in (1, 2, 3, 4, 7):
        if fields.get("quantize") and size > 2:  # groups of 32 cannot be cut further
            continue
        own, expected = loaded(folder, size, **fields)
        reports, found = loaded(folder, size, load="scatter", **fields)
        assert torch.equal(found, expected)
        assert [r.weight_bytes for r in reports] == [r.weight_bytes for r in own]
        assert [r.unread for r in reports] == [[]] * size == [r.unread for r in own]
        assert reports[0].read_bytes >= (folder / "model.safetensors").stat().st_size * 0.9
        assert [r.read_bytes for r in reports[1:]] == [0] * (size - 1)
    if not fields:
        assert (found - reference_logits(folder, PROMPT)).abs().max() <= 1e-4


def broken_at(monkeypatch: pytest.MonkeyPatch, where: Any, name: str, rank: int, call: int, error: Exception) -> None:
    """Have a function of a module fail on one rank at its so-manieth call."""
    calls, real = [0] * 8, getattr(where, name)

    def function(*arguments: Any) -> Any:
        calls[NAMES.rank] += 1
        if NAMES.rank == rank and calls[rank] == call:
            raise error
        return real(*arguments)

    monkeypatch.setattr(where, name, function)


def refused(folder: Path, sound: Path, **fields: Any) -> str:
    """Return why 3 ranks cannot load a folder; the same ranks then load another one."""

    def work(runner: Runner) -> str:
        with pytest.raises(ModelError) as caught:
            runner.lead_load(load_message(folder, load="scatter", **fields))
        runner.lead(Unload(0))
        runner.lead_load(load_message(sound, load="scatter"))
        assert (logits_in_pieces(runner, PROMPT, PIECES) - reference_logits(sound, PROMPT)).abs().max() <= 1e-4
        return str(caught.value)

    found: str = on_ranks(3, work)
    return found


@pytest.mark.parametrize("call", [1, 2, 9])
def test_a_read_error_on_rank_0_ends_the_load_everywhere(
    tmp_path: Path, call: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_checkpoint(tmp_path / "m")
    broken_at(monkeypatch, reading, "_read", 0, call, OSError(5, "Input/output error"))
    assert "cannot be read: Input/output error" in refused(folder, folder)


@pytest.mark.parametrize("rank", [0, 1, 2])
@pytest.mark.parametrize("call", [1, 4, 10])
def test_one_rank_without_memory_ends_the_load_everywhere(
    tmp_path: Path, rank: int, call: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_checkpoint(tmp_path / "m")
    broken_at(monkeypatch, pages, "empty", rank, call, MemoryError())
    told = refused(folder, folder)
    assert f"rank {rank}" in told
    assert "memory" in told.lower()


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_files_that_one_rank_cannot_open_end_the_load_everywhere(
    tmp_path: Path, rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_checkpoint(tmp_path / "m")
    broken_at(monkeypatch, slices, "open_checkpoint", rank, 1, CheckpointError("no such files here"))
    assert refused(folder, folder) == "no such files here"


@pytest.mark.parametrize("row", [0, 120, 202])
def test_a_number_that_one_rank_cannot_quantise_ends_the_load_everywhere(tmp_path: Path, row: int) -> None:
    sound, folder = write_checkpoint(tmp_path / "m"), write_checkpoint(tmp_path / "nan", intermediate_size=192)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"][row, 3] = torch.nan
    save_file(tensors, folder / "model.safetensors")
    told = refused(folder, sound, quantize="q8")
    assert "tensor 'lm_head.weight' holds NaN or infinity" in told


def test_scattered_weights_are_not_kept(tmp_path: Path) -> None:
    folder, lines = write_checkpoint(tmp_path / "m"), list[str]()

    def work(runner: Runner) -> None:
        runner.announce = lines.append
        runner.lead_load(load_message(folder, quantize="q8", shard_cache=str(tmp_path / "cache"), load="scatter"))

    on_ranks(2, work)
    assert "load=scatter keeps no quantised weights" in lines[0]
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("threads", [1, 3])
def test_large_tensors_come_straight_from_the_file(tmp_path: Path, threads: int) -> None:
    whole = torch.randn(6001, 1024).bfloat16()
    save_file({"w": whole, "v": whole[0].clone()}, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    checkpoint.reading = files = Files(threads)
    weights = Loaded(torch.bfloat16, sources=checkpoint.sources, checkpoint=checkpoint)
    before = len(os.listdir("/proc/self/fd"))
    assert torch.equal(weights.rows("w", (6001, 1024), range(7, 6000)), whole[7:6000])
    assert files.bytes_read == 5993 * 2048
    assert torch.equal(weights.columns("w", (6001, 1024), range(96, 800)), whole[:, 96:800])
    assert torch.equal(weights.vector("v", 1024), whole[0])
    assert files.bytes_read == (5993 + 6001 + 1) * 2048
    assert len(os.listdir("/proc/self/fd")) == before + 1
    files.close()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("threads", [1, 3])
def test_a_file_that_is_cut_off_meanwhile_is_named(tmp_path: Path, threads: int) -> None:
    save_file({"w": torch.zeros(5000, 1024)}, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    checkpoint.reading = Files(threads)
    os.truncate(tmp_path / "model.safetensors", 10_000_000)
    weights = Loaded(torch.float32, sources=checkpoint.sources, checkpoint=checkpoint)
    with pytest.raises(CheckpointError, match=r"tensor 'w' ends after \d+ of 20480000 bytes; fetch the file again"):
        weights.rows("w", (5000, 1024), range(5000))


def test_few_files_are_open_at_a_time(tmp_path: Path) -> None:
    files, out = Files(), torch.zeros(1, dtype=torch.uint8)
    before = len(os.listdir("/proc/self/fd"))
    for i in range(200):
        (tmp_path / f"{i}").write_bytes(bytes([i]))
        files.fill(out, tmp_path / f"{i}", 0, "x")
        assert out[0] == i
    assert len(os.listdir("/proc/self/fd")) <= before + 64
    files.close()


@pytest.mark.parametrize("shape", [(3, 5), (0, 4), (1 << 20,), (1025, 2049)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.uint8, torch.float32])
def test_memory_for_arrays_of_any_size(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    tensor = pages.empty(shape, dtype)
    assert (tuple(tensor.shape), tensor.dtype) == (shape, dtype)
    tensor.fill_(3)
    assert tensor.is_contiguous()
    assert bool((tensor == 3).all())


def test_bytes_are_shared(tmp_path: Path) -> None:
    def shared(comm: Communicator) -> list[int]:
        x = torch.full((5,), comm.rank + 4, dtype=torch.uint8)
        comm.share(x)
        return x.tolist()

    for size in (1, 3):
        assert run_threads(size, shared) == [[4] * 5] * size
    assert shared(Single()) == [4] * 5


@pytest.mark.parametrize("kind", ["awq", "gptq", "fp8", "gguf", "adapter"])
def test_rank_0_may_read_every_kind_of_checkpoint_for_all(tmp_path: Path, kind: str) -> None:
    base, adapters = write_checkpoint(tmp_path / "base", hidden_size=128, intermediate_size=192), list[str]()
    folder = base
    if kind == "gguf":
        folder = tmp_path / "m.gguf"
        write_gguf(folder, base, "Q8_0")
    elif kind == "adapter":
        adapters = [str(write_adapter(base, tmp_path / "a", target_modules="all-linear"))]
    else:
        folder, _ = quantised(base, tmp_path / "m", kind)
    for size in (2, 4):
        _, expected = loaded(folder, size, adapters=adapters)
        reports, found = loaded(folder, size, adapters=adapters, load="scatter")
        assert torch.equal(found, expected)
        assert [r.unread for r in reports] == [[]] * size
