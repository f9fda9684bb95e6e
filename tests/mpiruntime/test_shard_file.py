"""Quantised weights are kept for the next start, and never used where the checkpoint or the file is another one."""

from __future__ import annotations

import errno
import os
import random
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.checkpoints import PROMPT, write_checkpoint
from support.worlds import lead, load_message, logits_in_pieces

from ollampi.kernels import quantised
from ollampi.mpiruntime import shard_file
from ollampi.mpiruntime import weights as weights_module
from ollampi.mpiruntime.load_report import LoadReport
from ollampi.mpiruntime.runner import Runner
from ollampi.mpiruntime.thread_world import run_threads

FORMATS = pytest.mark.parametrize("quantize", ["q8", "q4"])
SIZES = pytest.mark.parametrize("size", [1, 3])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "m", head_dim=32, attention_bias=True)


def start(folder: Path, cache: Path | None, size: int = 2, quantize: str = "q4") -> tuple[Any, list[LoadReport], list]:
    """Return the logits of a prompt, what the ranks hold, and what was announced."""
    load = load_message(folder, quantize=quantize, shard_cache=None if cache is None else str(cache))
    said: list[str] = []

    def work(runner: Runner) -> tuple[torch.Tensor, list[LoadReport]]:
        runner.announce = said.append
        reports = runner.lead_load(load)
        return logits_in_pieces(runner, PROMPT, [9, 8]), reports

    found = run_threads(size, lambda c: lead(c, work))[0]
    assert found is not None
    return *found, said


def refuse_to_quantise(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a matrix was quantised")

    monkeypatch.setattr(weights_module, "QuantisedFilling", refuse)


def test_the_home_of_a_user_who_does_not_exist_is_a_name_like_any_other(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _, _, said = start(folder, Path("~nobody-of-this-name/kept"), size=1)
    assert said == []
    assert len(list((tmp_path / "~nobody-of-this-name" / "kept").iterdir())) == 1


@FORMATS
@SIZES
def test_a_second_start_quantises_nothing_and_computes_the_same(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quantize: str, size: int
) -> None:
    cache = tmp_path / "a" / "b"
    plain, _, _ = start(folder, None, size, quantize)
    first, reports, _ = start(folder, cache, size, quantize)
    refuse_to_quantise(monkeypatch)
    second, again, said = start(folder, cache, size, quantize)
    assert torch.equal(first, plain)
    assert torch.equal(second, plain)
    assert said == []
    assert [r.weight_bytes for r in again] == [r.weight_bytes for r in reports]
    assert [r.unread for r in again] == [r.unread for r in reports]
    assert all(0 < b.read_bytes < a.read_bytes for a, b in zip(reports, again, strict=True))
    files = sorted(cache.iterdir())
    assert len(files) == size
    assert all(file.stat().st_mode & 0o777 == 0o600 for file in files)
    assert cache.stat().st_mode & 0o777 == 0o700
    assert all(load_file(file) for file in files)  # other readers of the format agree


def test_each_format_and_world_has_its_own_files(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worlds = [(1, "q4"), (2, "q4"), (2, "q8")]
    expected = [start(folder, tmp_path / "c", *world)[0] for world in worlds]
    assert len(list((tmp_path / "c").iterdir())) == 5
    refuse_to_quantise(monkeypatch)
    for world, logits in zip(worlds, expected, strict=True):
        assert torch.equal(start(folder, tmp_path / "c", *world)[0], logits)


def test_a_checkpoint_that_changed_is_never_answered_from_the_file(folder: Path, tmp_path: Path) -> None:
    before, _, _ = start(folder, tmp_path / "c")
    weights = folder / "model.safetensors"
    times, data = weights.stat(), bytearray(weights.read_bytes())
    for at in range(len(data) // 2, len(data) // 2 + 4000, 4):
        data[at + 1] ^= 0x55
    weights.write_bytes(data)
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    changed, _, said = start(folder, tmp_path / "c")
    assert not torch.equal(changed, before)
    assert torch.equal(changed, start(folder, None)[0])
    assert said == []
    assert len(list((tmp_path / "c").iterdir())) == 2  # in place of the old ones


def test_damage_anywhere_is_noticed_and_mended(folder: Path, tmp_path: Path) -> None:
    expected, _, _ = start(folder, tmp_path / "c")
    file = sorted((tmp_path / "c").iterdir())[1]
    good, rng = file.read_bytes(), random.Random(7)
    for kind in ["cut"] * 4 + ["flip"] * 12 + ["empty", "longer"]:
        bad, at = bytearray(good), rng.randrange(len(good))
        if kind == "flip":
            bad[at] ^= 1 << rng.randrange(8)
        file.write_bytes({"cut": bad[:at], "flip": bad, "empty": b"", "longer": bad + b"x"}[kind])
        logits, _, said = start(folder, tmp_path / "c")
        assert torch.equal(logits, expected)
        assert len(said) <= 1
        assert kind == "flip" or (str(file) in said[0] and "damaged" in said[0])
        if said:
            assert file.read_bytes() == good


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
@pytest.mark.parametrize("call", ["fsync", "open"])
def test_a_folder_that_cannot_be_written_is_one_line_and_leaves_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, call: str
) -> None:
    real = os.open

    def fail(*arguments: Any) -> int:
        if call == "open" and not arguments[1] & os.O_CREAT:
            return real(*arguments)
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(shard_file.os, call, fail)
    logits, _, said = start(folder, tmp_path / "c")
    monkeypatch.undo()
    assert torch.equal(logits, start(folder, None)[0])
    assert len(said) == 1
    assert os.strerror(code) in said[0]
    assert list((tmp_path / "c").iterdir()) == []


def test_a_path_that_is_no_folder_is_one_line(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    logits, _, said = start(folder, tmp_path / "file" / "c")
    assert torch.equal(logits, start(folder, None)[0])
    assert len(said) == 1


def test_what_a_killed_rank_left_is_removed(folder: Path, tmp_path: Path) -> None:
    start(folder, tmp_path / "c")
    (file, _) = files = sorted((tmp_path / "c").iterdir())
    old, new = (file.with_name(f"{file.name}.{word}.part") for word in ("old", "new"))
    for left in (old, new):
        left.write_text("x")
    os.utime(old, (1, 1))
    file.unlink()
    start(folder, tmp_path / "c")
    assert sorted((tmp_path / "c").iterdir()) == [files[0], new, files[1]]


def test_servers_may_start_at_once(folder: Path, tmp_path: Path) -> None:
    expected, found = start(folder, None)[0], []
    threads = [threading.Thread(target=lambda: found.append(start(folder, tmp_path / "c"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(torch.equal(logits, expected) and said == [] for logits, _, said in found)
    assert len(list((tmp_path / "c").iterdir())) == 2


def test_a_checkpoint_that_changes_while_it_is_read_is_not_kept(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled = weights_module.Loaded._filled

    def disturbed(self: Any, *args: Any) -> Any:
        os.utime(folder / "config.json")
        os.utime(folder / "model.safetensors")
        return filled(self, *args)

    monkeypatch.setattr(weights_module.Loaded, "_filled", disturbed)
    _, _, said = start(folder, tmp_path / "c")
    assert not (tmp_path / "c").exists()
    assert said == []


def test_plain_weights_are_not_kept(folder: Path, tmp_path: Path) -> None:
    start(folder, tmp_path / "c", quantize="none")
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("scales_dtype", [torch.float16, torch.bfloat16])
def test_scales_come_back_in_their_own_type(tmp_path: Path, scales_dtype: torch.dtype) -> None:
    matrix = quantised.empty(20, 96, 8, torch.float32, scales_dtype)
    matrix.weights.random_()
    matrix.scales.copy_(torch.randn(matrix.scales.shape))
    path = tmp_path / "kept.safetensors"
    written = shard_file.ShardFile(path, "key")
    written.keep("m", matrix)
    written.save()
    assert load_file(path)["m.scales"].dtype == scales_dtype
    found = shard_file.ShardFile(path, "key").matrix("m", 20, 96, 8, torch.float32)
    assert found is not None
    assert found.scales.dtype == scales_dtype
    assert torch.equal(found.scales, matrix.scales)
    assert torch.equal(found.weights, matrix.weights)
    path.write_bytes(path.read_bytes().replace(b'"U8"', b'"I8"'))  # the bytes of another type are no weights
    assert shard_file.ShardFile(path, "key").matrix("m", 20, 96, 8, torch.float32) is None
