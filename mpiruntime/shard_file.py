"""Keep the quantised matrices of a rank in a file, so that the next start need not quantise them again.

The file is in safetensors' format and stands for one folder, format, world size and rank. It is used only where its
key is that of the checkpoint as it is now, and each matrix only where its checksum fits. That it cannot be read or
written is no error: the checkpoint has everything.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import time
import zlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from ollampi.kernels import quantised
from ollampi.kernels.native import library
from ollampi.kernels.quantised import Quantised
from ollampi.mpiruntime.errors import CheckpointError
from ollampi.mpiruntime.gguf_header import is_gguf
from ollampi.mpiruntime.lora import adapter_files
from ollampi.mpiruntime.safetensors_header import TensorEntry, parse_header, read_header_bytes

_VERSION = 2  # of the file and of the numbers in it; another one is written anew
_KINDS = {torch.uint8: "U8", torch.bfloat16: "BF16", torch.float16: "F16"}
_PAUSE_BYTES = 4 << 20
_PIECE_BYTES = 1 << 20  # stays in a core's cache between reading and checking
_SAMPLES, _SAMPLE_BYTES = 16, 4096  # of each file of the checkpoint
_LEFT_S = 3600.0  # after which a file that was being written belongs to a rank that was killed


def checkpoint_key(folder: Path, files: Iterable[Path], adapters: Iterable[Path] = ()) -> str:
    """Return a digest that changes with the checkpoint's config or files or adapters; raise OSError, CheckpointError.

    It takes in names, sizes and headers, samples of the content, and both times: the kernel sets the time of the last
    change, which nobody can set back, whatever is written.
    """
    made = "C" if library() else "torch"  # of scales nearly as good they may choose different ones
    config = (folder / "config.json").read_bytes() if folder.is_dir() else b""  # a GGUF file is all there is
    digest = hashlib.blake2b(f"{_VERSION}:{made}:".encode() + config, digest_size=16)
    tensors = set(files)
    for adapter in adapters:
        settings, adapter_tensors = adapter_files(adapter)
        digest.update(f"{adapter}:".encode(errors="surrogateescape") + settings.read_bytes())
        tensors.add(adapter_tensors)
    for path in sorted(tensors):
        stat = path.stat()
        header, size = (b"", stat.st_size) if is_gguf(path) else read_header_bytes(path)
        digest.update(f"{path.name}:{size}:{stat.st_mtime_ns}:{stat.st_ctime_ns}:{len(header)}:".encode() + header)
        with path.open("rb") as file:
            for i in range(_SAMPLES):
                digest.update(
                    os.pread(file.fileno(), _SAMPLE_BYTES, max(0, size - _SAMPLE_BYTES) * i // (_SAMPLES - 1))
                )
    return digest.hexdigest()


def shard_path(cache: str, folder: Path, quantize: str, rank: int, size: int, adapters: Iterable[Path] = ()) -> Path:
    """Return the file for a rank's part of the checkpoint in `folder` with adapters merged."""
    places = b"\0".join(os.fsencode(path.resolve()) for path in (folder, *adapters))
    place = hashlib.blake2b(places, digest_size=6).hexdigest()
    name = re.sub(r"[^\w.-]", "_", folder.resolve().name)[:60]
    return Path(os.path.expanduser(cache)) / f"{name}-{place}-{quantize}-{rank}-of-{size}.safetensors"


@dataclass
class ShardFile:
    """The matrices that are in a file by name, and those to be written to it.

    note: what went wrong, for the operator; "" where nothing did. incomplete: whether the file lacks what was wanted.
    pause: called before every few MiB that are read or written; what it raises passes through.
    """

    path: Path
    key: str
    pause: Callable[[], None] = lambda: None
    note: str = ""
    bytes_read: int = 0
    _entries: dict[str, TensorEntry] = field(default_factory=dict)
    _sums: dict[str, str] = field(default_factory=dict)
    _kept: dict[str, Quantised] = field(default_factory=dict)
    incomplete: bool = False

    def __post_init__(self) -> None:
        """Read what the file holds, if there is one of this key."""
        try:
            self.path.stat()
            raw, size = read_header_bytes(self.path)
            entries = parse_header(self.path, raw, size)
            sums = json.loads(raw).get("__metadata__")
        except (FileNotFoundError, NotADirectoryError):
            return
        except (OSError, CheckpointError):
            self._damaged()
            return
        if isinstance(sums, dict) and sums.get("key") == self.key:
            self._entries, self._sums = entries, sums

    def matrix(self, name: str, num_rows: int, width: int, bits: int, dtype: torch.dtype) -> Quantised | None:
        """Return a matrix of the file, its scales as they were kept; None where it is not there or damaged."""
        if f"{name}.weights" not in self._entries:
            self.incomplete = True
            return None
        scales = self._entries.get(f"{name}.scales")
        scales_dtype = torch.float16 if scales is not None and scales.dtype == "F16" else torch.bfloat16
        matrix = quantised.empty(num_rows, width, bits, dtype, scales_dtype)
        try:
            with self.path.open("rb") as file:
                whole = all(self._read(file.fileno(), f"{name}.{part}", t) for part, t in _parts(matrix))
        except OSError:
            whole = False
        if not whole:
            self._damaged()
            return None
        self._kept[name] = matrix
        return matrix

    def keep(self, name: str, matrix: Quantised) -> None:
        """Take a matrix to be written by `save`; it must not change."""
        self._kept[name] = matrix

    def save(self) -> None:
        """Write all matrices that were found or kept in place of the file."""
        temporary = self.path.with_name(f"{self.path.name}.{secrets.token_hex(8)}.part")
        try:
            self.path.parent.mkdir(0o700, parents=True, exist_ok=True)
            remove_left(self.path)
            with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(self._header())
                for matrix in self._kept.values():
                    for _, tensor in _parts(matrix):
                        self._write(file, _bytes(tensor))
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.path)
        except OSError as e:
            self.note = (
                self.note
                or f"quantised weights are not kept in {self.path}: {e.strerror}; the next start quantises anew"
            )
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)

    def _write(self, file: BinaryIO, view: memoryview) -> None:
        """Write bytes; raise OSError."""
        for at in range(0, len(view), _PAUSE_BYTES):
            self.pause()
            file.write(view[at : at + _PAUSE_BYTES])

    def _read(self, file: int, name: str, tensor: Tensor) -> bool:
        """Fill a tensor from the file; return whether it is what was written."""
        entry, view = self._entries.get(name), _bytes(tensor)
        if entry is None or (entry.dtype, entry.shape) != (_KINDS[tensor.dtype], tuple(tensor.shape)):
            return False
        got, found = 0, 0
        while got < len(view):
            if got % _PAUSE_BYTES == 0:
                self.pause()
            piece = view[got : got + _PIECE_BYTES]
            count = os.preadv(file, [piece], entry.offset + got)
            if not count:
                return False
            found = zlib.crc32(piece[:count], found)
            got += count
        self.bytes_read += got
        return self._sums.get(name) == f"{found:08x}"

    def _header(self) -> bytes:
        """Return what stands before the tensors."""
        sums, entries, at = {"key": self.key}, {}, 0
        for name, matrix in self._kept.items():
            for part, tensor in _parts(matrix):
                full, view = f"{name}.{part}", _bytes(tensor)
                sums[full] = f"{zlib.crc32(view):08x}"
                entries[full] = {
                    "dtype": _KINDS[tensor.dtype],
                    "shape": tuple(tensor.shape),
                    "data_offsets": (at, at + len(view)),
                }
                at += len(view)
        text = json.dumps({"__metadata__": sums, **entries}).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text

    def _damaged(self) -> None:
        """Use nothing more of the file."""
        self.note = self.note or f"{self.path} is damaged or cannot be read; weights are quantised anew"
        self._entries, self.incomplete = {}, True


def _parts(matrix: Quantised) -> list[tuple[str, Tensor]]:
    """Return the tensors of a matrix by name."""
    return [("weights", matrix.weights), ("scales", matrix.scales)]


def _bytes(tensor: Tensor) -> memoryview:
    """Return the bytes of a contiguous tensor in place."""
    return tensor.view(-1).view(torch.uint8).numpy().data


def remove_left(path: Path) -> None:
    """Remove what ranks that were killed left of this file."""
    for left in path.parent.glob(f"{path.name}.*.part"):
        with suppress(OSError):
            if left.stat().st_mtime < time.time() - _LEFT_S:
                left.unlink()
