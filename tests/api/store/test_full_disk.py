"""On a disk without room models can be deleted, and nothing else changes."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest
from support.stores import blob_contents, manifest_of, named

from ollampi.api.errors import ApiError
from ollampi.api.store.digest import digest_of
from ollampi.api.store.lease import Lease
from ollampi.api.store.local import LocalStore


def refuse_new_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have no file be made any more; others can be opened."""
    real = os.open

    def opened(path, flags, *rest, **more):
        if flags & os.O_CREAT:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return real(path, flags, *rest, **more)

    monkeypatch.setattr(os, "open", opened)


def in_root(root: Path) -> set[str]:
    return {path.name for path in root.iterdir() if path.is_file()}


def test_models_are_deleted_without_a_new_file(local, root, monkeypatch):
    local.write(named("a"), manifest_of(local, b"weights a"))
    local.write(named("b"), manifest_of(local, b"weights b"))
    with monkeypatch.context() as patched:
        refuse_new_files(patched)
        for name in ("a", "b"):
            assert local.remove(named(name))
            assert in_root(root) == {"ollampi.lock.spare"}
        with pytest.raises(ApiError, match="no space left"):
            local.blobs.put([b"x"])
    assert blob_contents(root) == set()
    local.write(named("c"), manifest_of(local, b"weights c"))


def test_a_file_that_can_be_made_but_not_written(local, root, monkeypatch):
    local.write(named("a"), manifest_of(local, b"weights"))
    spare, real = (root / "ollampi.lock.spare").stat().st_ino, os.write

    def written(fd, data):
        if os.fstat(fd).st_ino != spare:
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
        return real(fd, data)

    monkeypatch.setattr(os, "write", written)
    assert local.remove(named("a"))
    assert in_root(root) == {"ollampi.lock.spare"}


def test_who_waits_for_a_lock_made_of_the_spare_file_waits(root, monkeypatch):
    store = LocalStore(root, lock_wait_s=0.2)
    store.write(named("a"), manifest_of(store, b"weights"))
    refuse_new_files(monkeypatch)
    held = Lease(root / "ollampi.lock", spare=root / "ollampi.lock.spare")
    with pytest.raises(ApiError, match="another process writes the model store: process") as caught:
        store.remove(named("a"))
    assert caught.value.status == 503
    held.release()
    assert store.remove(named("a"))


def test_a_dead_writers_lock_is_broken_there_too(local, root, monkeypatch):
    local.write(named("a"), manifest_of(local, b"weights"))
    (root / "ollampi.lock").write_text('{"pid": 1}')
    os.utime(root / "ollampi.lock", (0, 0))
    refuse_new_files(monkeypatch)
    assert local.remove(named("a"))
    assert in_root(root) == {"ollampi.lock.spare"}


def fill(file: IO[bytes]) -> None:
    """Write until there is no room."""
    with contextlib.suppress(OSError):
        while True:
            file.write(bytes(1024))


def download(store: LocalStore, data: bytes) -> None:
    with store.blobs.partial(digest_of(hashlib.sha256(data)), len(data)) as partial:
        partial.write(data)
        partial.finish()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Return a folder with 256 KiB; skip where none can be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    line = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    try:
        done = subprocess.run(line, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no mount on this machine")
    if done.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_real_disk_that_is_full(small_disk):
    store = LocalStore(small_disk / "store")
    store.write(named("a"), manifest_of(store, b"weights" * 5000))
    with (small_disk / "filler").open("wb", buffering=0) as filler:
        fill(filler)
    with pytest.raises(ApiError, match="no space left"):
        store.blobs.put([b"more" * 1000])
    with pytest.raises(ApiError, match="no space left"):
        download(store, b"more" * 1000)
    assert store.remove(named("a"))
    assert [path.suffix for path in (store.root / "blobs").iterdir()] == [".partial"]
    download(store, b"more" * 1000)
