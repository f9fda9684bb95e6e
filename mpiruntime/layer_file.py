"""Keep the matrices of a rank's layers in a file, of which each layer is one run of bytes.

The file is in safetensors' format, a run a tensor of bytes, and stands for one folder, format, world size and rank. It
is used only where its key is that of the checkpoint as it is now. Runs begin and end with a page, so that they are read
past the kernel's cache of files, which a file larger than the memory would only push out of it.
"""

from __future__ import annotations

import errno
import fcntl
import json
import mmap
import os
import secrets
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from ollampi.kernels.pages import PAGE
from ollampi.mpiruntime.errors import CheckpointError, ModelError
from ollampi.mpiruntime.memory import human
from ollampi.mpiruntime.safetensors_header import parse_header, read_header_bytes
from ollampi.mpiruntime.shard_file import remove_left

_UNKNOWN = "0" * 8  # in the place of a checksum
_PIECE_BYTES = 1 << 30  # of one call, which the kernel bounds by 2 GiB


class Damaged(CheckpointError):
    """The file of a rank's layers does not hold what was written, or changed; `path` can be written anew."""

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(f"{path} {what}")
        self.path = path


class LayerFile:
    """A file that is open for reading, by any thread. A run is checked when it is first read."""

    def __init__(self, path: Path, offsets: Sequence[int], sums: Sequence[str], direct: bool = True) -> None:
        self.path = path
        self._offsets, self._sums = offsets, sums
        self._checked: set[int] = set()
        self._file = _open(path, os.O_RDONLY)
        _past_cache(self._file, direct)
        self._state = self._seen()

    def read(self, layer: int, run: Tensor) -> None:
        """Fill a run [n] of whole pages; raise Damaged, or OSError."""
        view = run.numpy().data
        got = 0
        while got < len(view):
            count = _moved(os.preadv, self._file, [view[got : got + _PIECE_BYTES]], self._offsets[layer] + got)
            if not count:
                raise Damaged(self.path, "was cut short")
            got += count
        if self._seen() != self._state:
            raise Damaged(self.path, "changed while it was in use")
        if layer not in self._checked:
            if f"{zlib.crc32(view):08x}" != self._sums[layer]:
                raise Damaged(self.path, f"is damaged in layer {layer}")
            self._checked.add(layer)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def _seen(self) -> tuple[int, int]:
        """Return what changes when somebody writes to the file, but not when another one takes its name."""
        stat = os.fstat(self._file)
        return stat.st_size, stat.st_mtime_ns


def open_layers(path: Path, key: str, sizes: Sequence[int], direct: bool = True) -> LayerFile | None:
    """Return the file with runs of these sizes, None where there is none of this key.

    Raise Damaged. direct: past the kernel's cache where the file system can.
    """
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        raw, size = read_header_bytes(path)
        entries, told = parse_header(path, raw, size), json.loads(raw).get("__metadata__")
    except CheckpointError as e:
        raise Damaged(path, "is damaged") from e
    if not isinstance(told, dict) or told.get("key") != key:
        return None
    found = [entries.get(_name(i)) for i in range(len(sizes))]
    offsets = [entry.offset for entry, size in zip(found, sizes, strict=True) if entry and entry.size_bytes == size]
    if len(offsets) != len(sizes) or any(offset % PAGE for offset in offsets):
        raise Damaged(path, "is damaged")
    return LayerFile(path, offsets, [str(told.get(_name(i))) for i in range(len(sizes))], direct)


class LayerWriter:
    """A file that is being written under another name; runs come in any order. Raise ModelError where it cannot be."""

    def __init__(self, path: Path, key: str, sizes: Sequence[int]) -> None:
        self.path = path
        self._key, self._sizes = key, sizes
        self._sums = [_UNKNOWN] * len(sizes)
        self._begin = len(self._header())
        self._part = path.with_name(f"{path.name}.{secrets.token_hex(8)}.part")
        self._file = -1
        try:
            path.parent.mkdir(0o700, parents=True, exist_ok=True)
            remove_left(path)  # where a file system knows no locks, after an hour
            _remove_unlocked(path)
            self._file = _open(self._part, os.O_RDWR | os.O_CREAT | os.O_EXCL)
            with suppress(OSError):
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.posix_fallocate(self._file, 0, self._begin + sum(sizes))  # else it may be full in an hour's time
            _past_cache(self._file, True)
        except OSError as e:
            self.close()
            raise self._failed(e) from e

    def write(self, layer: int, run: Tensor) -> None:
        """Write a run [n] of whole pages."""
        view = run.numpy().data
        self._sums[layer] = f"{zlib.crc32(view):08x}"
        self._put(view, self._begin + sum(self._sizes[:layer]))

    def seal(self) -> None:
        """Let the file appear under its name, whole."""
        header = mmap.mmap(-1, self._begin)  # begins with a page, as writing past the kernel's cache demands
        header[:] = self._header()
        self._put(memoryview(header), 0)
        try:
            os.fsync(self._file)
            self._part.replace(self.path)
        except OSError as e:
            raise self._failed(e) from e

    def close(self) -> None:
        """Close the file, and remove it where it was not sealed."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        with suppress(OSError):
            self._part.unlink(missing_ok=True)

    def _put(self, view: memoryview, offset: int) -> None:
        """Write a view of whole pages at an offset."""
        done = 0
        try:
            while done < len(view):
                done += _moved(os.pwrite, self._file, view[done : done + _PIECE_BYTES], offset + done)
        except OSError as e:
            raise self._failed(e) from e

    def _header(self) -> bytes:
        """Return what stands before the runs: whole pages."""
        at, entries = 0, {}
        for i, size in enumerate(self._sizes):
            entries[_name(i)] = {"dtype": "U8", "shape": (size,), "data_offsets": (at, at + size)}
            at += size
        sums = {_name(i): found for i, found in enumerate(self._sums)}
        text = json.dumps({"__metadata__": {"key": self._key, **sums}, **entries}).encode()
        text += b" " * (-(len(text) + 8) % PAGE)
        return len(text).to_bytes(8, "little") + text

    def _failed(self, e: OSError) -> ModelError:
        """Return the error for a file that cannot be written."""
        size = human(self._begin + sum(self._sizes))
        return ModelError(
            f"cannot write {self.path}, which weights that do not fit into memory are read from ({size}): {e.strerror};"
            " make room there, or give another folder with cache=FOLDER"
        )


def _name(layer: int) -> str:
    """Return what the run of a layer is called in the file."""
    return f"layers.{layer}"


def _open(path: Path, flags: int) -> int:
    """Return a file that only its owner can read."""
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def _remove_unlocked(path: Path) -> None:
    """Remove what writers of this file left that were killed: these take the room of the whole file, but no lock."""
    for left in path.parent.glob(f"{path.name}.*.part"):
        with suppress(OSError):
            file = _open(left, os.O_RDWR)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                left.unlink()
            finally:
                os.close(file)


def _past_cache(file: int, wanted: bool) -> None:
    """Let reads and writes go past the kernel's cache, or through it; some file systems can do only the latter."""
    flags = fcntl.fcntl(file, fcntl.F_GETFL)
    with suppress(OSError):
        fcntl.fcntl(file, fcntl.F_SETFL, flags | os.O_DIRECT if wanted else flags & ~os.O_DIRECT)


def _moved(call: Callable[[int, Any, int], int], file: int, what: Any, offset: int) -> int:
    """Return the bytes that a read or write moved: past the kernel's cache unless the device has larger pages."""
    try:
        return call(file, what, offset)
    except OSError as e:
        if e.errno != errno.EINVAL:
            raise
        _past_cache(file, False)
        return call(file, what, offset)
