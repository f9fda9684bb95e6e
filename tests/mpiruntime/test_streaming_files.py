"""The file that layers are streamed from: damaged, out of date, not to be written, lost while it is read."""

from __future__ import annotations

import gc
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from support.checkpoints import PROMPT, write_checkpoint
from support.streaming import five_layers, start
from support.worlds import lead, load_message, logits_in_pieces

from ollampi.mpiruntime import residence as residence_module
from ollampi.mpiruntime import slices
from ollampi.mpiruntime.errors import LostWeights, ModelError
from ollampi.mpiruntime.layer_file import LayerFile
from ollampi.mpiruntime.residence import Streamed
from ollampi.mpiruntime.runner import Runner
from ollampi.mpiruntime.step import Load, Unload
from ollampi.mpiruntime.thread_world import run_threads

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # of torch, whose objects are looked through

SIZES = pytest.mark.parametrize("size", [1, 2, 3, 4])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return five_layers(tmp_path_factory.mktemp("m") / "m")


@pytest.mark.parametrize("size", [1, 3])
def test_a_damaged_file_costs_a_line_and_is_written_anew(folder: Path, tmp_path: Path, size: int) -> None:
    expected, _, _ = start(folder, size, tmp_path)
    file = sorted(tmp_path.iterdir())[-1]
    good = file.read_bytes()
    for bad in (good[:-5000], good[:-1] + bytes([good[-1] ^ 1]), b"", good[:20000] + b"!!" + good[20002:]):
        file.write_bytes(bad)
        logits, _, said = start(folder, size, tmp_path)
        assert torch.equal(logits, expected)
        assert len(said) == 1
        assert f"{file} " in said[0]
        assert "written anew" in said[0]
        assert file.read_bytes() == good
        assert len(list(tmp_path.iterdir())) == size


def test_a_checkpoint_that_changed_is_never_answered_from_the_file(folder: Path, tmp_path: Path) -> None:
    before, _, _ = start(folder, 2, tmp_path / "c")
    other = write_checkpoint(tmp_path / "m", seed=5, num_hidden_layers=5, head_dim=32, attention_bias=True)
    data = (other / "model.safetensors").read_bytes()
    good = (folder / "model.safetensors").read_bytes()
    try:
        (folder / "model.safetensors").write_bytes(data)
        changed, _, said = start(folder, 2, tmp_path / "c")
        assert torch.equal(changed, start(folder, 2)[0])
    finally:
        (folder / "model.safetensors").write_bytes(good)
    assert not torch.equal(changed, before)
    assert said == []
    assert len(list((tmp_path / "c").iterdir())) == 2


def test_a_checkpoint_that_changes_while_it_is_read_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = residence_module.LayerWriter.write

    def disturbed(self: Any, *given: Any) -> None:
        os.utime(folder / "model.safetensors")
        real(self, *given)

    monkeypatch.setattr(residence_module.LayerWriter, "write", disturbed)
    with pytest.raises(ModelError, match="changed while it was read"):
        start(folder, 1, tmp_path)
    assert list(tmp_path.iterdir()) == []


@SIZES
@pytest.mark.parametrize("call", ["seal", "write"])
def test_where_the_file_cannot_be_written_every_rank_refuses(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, call: str
) -> None:
    """The last rank's folder is full."""

    def full(self: Any, *given: Any) -> None:
        if f"-{size - 1}-of-{size}." in self.path.name:
            raise self._failed(OSError(28, "No space left on device"))

    monkeypatch.setattr(residence_module.LayerWriter, call, full)
    with pytest.raises(ModelError, match="No space left on device; make room there, or give another folder"):
        start(folder, size, tmp_path)
    assert not any("part" in file.name for file in tmp_path.iterdir())


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("harm", ["cut", "write", "error"])
def test_a_file_that_is_lost_in_use_ends_the_step_with_its_name(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, harm: str
) -> None:
    def work(runner: Runner) -> None:
        runner.lead_load(load_message(folder, num_streamed=5, shard_cache=str(tmp_path)))
        logits_in_pieces(runner, PROMPT, [17])
        file = sorted(tmp_path.iterdir())[-1]
        if harm == "error":
            monkeypatch.setattr(residence_module.LayerFile, "read", _fail)
        else:
            os.utime(file, ns=(1, 1))
            os.truncate(file, 8192) if harm == "cut" else file.open("r+b").close()
        for _ in range(3):
            logits_in_pieces(runner, PROMPT, [17])

    with pytest.raises(LostWeights, match=r"layer \d cannot be read any more from .*; start again"):
        run_threads(size, lambda c: lead(c, work))
    for found in [found for found in gc.get_objects() if isinstance(found, Streamed)]:
        found.close()  # else the end of the process does


def _fail(*_: Any) -> None:
    raise OSError(5, "Input/output error")


def _held(folder: Path) -> list[str]:
    """Return the files below a folder that this process has open."""
    links = [Path(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")]
    return [str(target) for link in links if link.is_symlink() and folder in (target := link.resolve()).parents]


@pytest.mark.parametrize("size", [1, 2])
def test_a_load_that_is_given_up_once_it_was_read_leaves_no_file_open(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """Every rank has its slice, and has not looked yet, when it is told to unload it."""
    were_read, told = list[int](), threading.Event()
    plain = slices.Reader.read

    def read(reader: slices.Reader, load: Load, reading: Any) -> Any:
        found = plain(reader, load, reading)
        were_read.append(reader.rank)
        assert told.wait(60.0)
        return found

    monkeypatch.setattr(slices.Reader, "read", read)

    def work(runner: Runner) -> None:
        load = load_message(folder, num_streamed=5, shard_cache=str(tmp_path))
        runner.begin(load)
        while len(were_read) < size:
            runner.meanwhile()
        runner.lead(Unload(load.model))
        assert runner.comm.size == 1 or runner.lead_report() is not None  # the others have seen that
        told.set()
        while not runner.loaded(load):
            runner.meanwhile()
        with pytest.raises(ModelError, match="given up"):
            runner.finish(load)

    run_threads(size, lambda c: lead(c, work))
    assert _held(tmp_path) == []


@pytest.mark.parametrize("size", [1, 2])
def test_a_load_without_memory_for_its_cache_leaves_no_file_open(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    def refuse(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(slices, "_cache", refuse)
    with pytest.raises(ModelError, match="out of memory"):
        start(folder, size, tmp_path, num_streamed=5)
    assert _held(tmp_path) == []


def test_an_unload_waits_for_no_disk(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is being read ahead when a model goes is waited for beside the steps of others."""
    reading, may_end = threading.Event(), threading.Event()
    plain = residence_module.LayerFile.read

    def slow(file: LayerFile, layer: int, buffer: torch.Tensor) -> None:
        if threading.current_thread().name.startswith("layers"):
            reading.set()
            assert may_end.wait(60.0)
        plain(file, layer, buffer)

    monkeypatch.setattr(residence_module.LayerFile, "read", slow)

    def work(runner: Runner) -> None:
        runner.lead_load(load_message(folder, num_streamed=5, shard_cache=str(tmp_path)))
        assert reading.wait(60.0)
        runner.lead(Unload(0))
        may_end.set()

    run_threads(1, lambda c: lead(c, work))
    assert _held(tmp_path) == []
