"""The file of a rank's layers gives back what was written to it, or says that it cannot."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from ollampi.kernels import pages
from ollampi.mpiruntime import layer_file
from ollampi.mpiruntime.errors import ModelError
from ollampi.mpiruntime.layer_file import Damaged, LayerFile, LayerWriter, open_layers

SIZES = [2 * pages.PAGE, 0, pages.PAGE, 600 * pages.PAGE]  # one of them in huge pages


def filled(seed: int = 0) -> list[Tensor]:
    """Return runs of SIZES with random bytes."""
    runs = [pages.aligned(size) for size in SIZES]
    for run in runs:
        run.random_(generator=torch.Generator().manual_seed(seed))
    return runs


def write(path: Path, runs: list[Tensor], key: str = "key") -> None:
    writer = LayerWriter(path, key, SIZES)
    for layer in (3, 1, 0, 2):
        writer.write(layer, runs[layer])
    writer.seal()
    writer.close()


def opened(path: Path, key: str = "key", direct: bool = True) -> LayerFile:
    file = open_layers(path, key, SIZES, direct)
    assert file is not None
    return file


def read_all(file: LayerFile) -> list[Tensor]:
    """Return all runs, read twice in another order, and close the file."""
    runs = [pages.aligned(size) for size in SIZES]
    for layer in (0, 1, 2, 3, 3, 2, 1, 0):
        file.read(layer, runs[layer].zero_())
    file.close()
    return runs


@pytest.mark.parametrize("direct", [True, False])
def test_what_is_written_is_read(tmp_path: Path, direct: bool) -> None:
    path, runs = tmp_path / "a" / "f", filled()
    assert open_layers(path, "key", SIZES) is None
    write(path, runs)
    assert all(map(torch.equal, read_all(opened(path, direct=direct)), runs))
    assert list(path.parent.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o600
    other = load_file(path)  # another reader of the format agrees
    assert all(torch.equal(other[f"layers.{i}"], run) for i, run in enumerate(runs))
    assert open_layers(path, "other", SIZES) is None
    with pytest.raises(Damaged):
        open_layers(path, "key", [*SIZES, pages.PAGE])


def test_a_file_system_that_knows_no_direct_reading_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = {"preadv": os.preadv, "pwrite": os.pwrite}

    def refuse(name: str) -> Any:
        def moved(file: int, what: Any, offset: int) -> int:
            if layer_file.fcntl.fcntl(file, layer_file.fcntl.F_GETFL) & os.O_DIRECT:
                raise OSError(errno.EINVAL, "no")
            return real[name](file, what, offset)

        return moved

    for name in real:
        monkeypatch.setattr(layer_file.os, name, refuse(name))
    runs = filled()
    write(tmp_path / "f", runs)
    assert all(map(torch.equal, read_all(opened(tmp_path / "f")), runs))


def test_damage_anywhere_is_noticed(tmp_path: Path) -> None:
    path, runs, rng = tmp_path / "f", filled(), random.Random(3)
    write(path, runs)
    good = path.read_bytes()
    for kind in ["cut"] * 4 + ["flip"] * 20 + ["header"] * 20 + ["empty", "longer"]:
        bad, at = bytearray(good), rng.randrange(600 if kind == "header" else len(good))
        bad[at] ^= 1 << rng.randrange(8)
        path.write_bytes({"cut": good[:at], "empty": b"", "longer": good + b"x"}.get(kind, bad))
        try:
            file = open_layers(path, "key", SIZES)
            assert file is None or all(map(torch.equal, read_all(file), runs))
            assert kind in ("flip", "header")
        except Damaged as e:
            named = e.path, str(path) in str(e)
        else:
            continue  # the bit had no meaning
        assert named == (path, True)


@pytest.mark.parametrize("change", ["cut", "write", "grow"])
def test_a_file_that_changes_while_it_is_open_is_noticed(tmp_path: Path, change: str) -> None:
    path, runs = tmp_path / "f", filled()
    write(path, runs)
    file, buffer = opened(path), pages.aligned(SIZES[3])
    file.read(3, buffer)
    os.utime(path, ns=(1, 1))  # of a time that is surely another one
    with path.open("r+b") as other:
        if change == "cut":
            other.truncate(len(path.read_bytes()) - pages.PAGE)
        else:
            other.seek(0, os.SEEK_END if change == "grow" else os.SEEK_SET)
            other.write(b"x")
    with pytest.raises(Damaged, match="was cut short" if change == "cut" else "changed while it was in use"):
        file.read(3, buffer)
    file.close()


@pytest.mark.parametrize("replaced", [True, False])
def test_another_server_may_replace_or_delete_the_file(tmp_path: Path, replaced: bool) -> None:
    path, runs = tmp_path / "f", filled()
    write(path, runs)
    file = opened(path)
    if replaced:
        write(path, filled(1), "other")
    else:
        path.unlink()
    assert all(map(torch.equal, read_all(file), runs))


@pytest.mark.parametrize("call", ["open", "posix_fallocate", "pwrite", "fsync"])
def test_a_folder_that_is_full_is_named_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def fail(*_: Any, **__: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(layer_file.os, call, fail)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(
        ModelError, match=r"cannot write .*2\.36 MiB.* No space left on device; .* cache=FOLDER"
    ) as caught:
        write(tmp_path / "f", filled())
    monkeypatch.undo()
    assert str(tmp_path / "f") in str(caught.value)
    if call in ("open", "posix_fallocate"):  # else whoever writes closes
        assert list(tmp_path.iterdir()) == []
        assert len(os.listdir("/proc/self/fd")) == before


def test_a_writer_that_is_closed_early_leaves_nothing(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    writer = LayerWriter(tmp_path / "f", "key", SIZES)
    writer.write(0, filled()[0])
    assert len(list(tmp_path.iterdir())) == 1
    writer.close()
    writer.close()
    assert list(tmp_path.iterdir()) == []
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_a_writer_that_was_killed_left_goes_at_once_and_what_is_being_written_stays(tmp_path: Path) -> None:
    path, runs = tmp_path / "f", filled()
    left = tmp_path / "f.0123456789abcdef.part"
    left.write_bytes(b"half")
    writer = LayerWriter(path, "key", SIZES)
    assert not left.exists()
    write(path, runs)
    for layer in range(len(SIZES)):
        writer.write(layer, runs[layer])
    writer.seal()
    writer.close()
    assert [file.name for file in tmp_path.iterdir()] == ["f"]
    assert all(map(torch.equal, read_all(opened(path)), runs))
