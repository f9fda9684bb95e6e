"""Read and check the header of a safetensors file without reading its tensors.

The format: 8 bytes little-endian header length, the header as JSON {name: {dtype, shape, data_offsets}}, the bytes.
https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ollampi.mpiruntime.errors import CheckpointError
from ollampi.mpiruntime.header_json import header_pairs

MAX_HEADER_BYTES = 24 << 20  # 100 000 tensors take 13 MB
LFS_POINTER = b"version "  # as the text begins that Git LFS leaves in the place of a file
MAX_TENSORS = 100_000
ITEM_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where one tensor lies: `offset` counts from the start of the file."""

    name: str
    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size_bytes: int

    @property
    def num_elements(self) -> int:
        """Return how many values the tensor holds."""
        return math.prod(self.shape)


def read_header(path: Path) -> dict[str, TensorEntry]:
    """Return the tensors of one file by name; raise CheckpointError where the file is damaged or lies about itself."""
    return parse_header(path, *read_header_bytes(path))


def read_header_bytes(path: Path) -> tuple[bytes, int]:
    """Return the header's JSON as it stands in the file and the file's size; raise CheckpointError."""
    try:
        if not path.is_file():  # opening a pipe would block for ever
            raise CheckpointError(f"{path} is no regular file; fetch it again")
        file_bytes = path.stat().st_size
        with path.open("rb") as file:
            begin = file.read(8)
            if begin == LFS_POINTER:
                raise CheckpointError(f"{path} is a pointer of Git LFS, not the file; run `git lfs pull` in its folder")
            (header_bytes,) = struct.unpack("<Q", begin.ljust(8, b"\xff"))
            if header_bytes > min(MAX_HEADER_BYTES, file_bytes - 8):
                raise CheckpointError(
                    f"{path}: the header claims {header_bytes} bytes but the file has {file_bytes}"
                    f" (limit {MAX_HEADER_BYTES}); it is truncated or no safetensors file, fetch it again"
                )
            return file.read(header_bytes), file_bytes
    except OSError as e:
        raise CheckpointError(f"{path} cannot be read: {e.strerror}") from e


def parse_header(path: Path, raw: bytes, file_bytes: int) -> dict[str, TensorEntry]:
    """Return the tensors that the header `raw` of a file of file_bytes describes; raise CheckpointError."""
    start = 8 + len(raw)
    entries: dict[str, TensorEntry] = {}
    if raw.count(b'"data_offsets"') > MAX_TENSORS:  # seen at once, unless it is written in a strange way
        raise _too_many(path)
    try:
        for name, value in header_pairs(raw):
            if name in entries:
                raise CheckpointError(f"{path}: tensor {name!r} comes twice in the header; fetch the file again")
            if len(entries) == MAX_TENSORS:
                raise _too_many(path)
            entries[name] = _entry(path, name, value, start)
    except ValueError as e:
        raise CheckpointError(f"{path}: {e}; fetch the file again") from e
    _check_tiling(path, entries, start, file_bytes)
    return entries


def _too_many(path: Path) -> CheckpointError:
    return CheckpointError(f"{path}: the header has more than {MAX_TENSORS} tensors, which is the limit")


def _entry(path: Path, name: str, value: Any, start: int) -> TensorEntry:
    """Return one checked entry of the header."""
    try:
        dtype, shape, (begin, end) = value["dtype"], value["shape"], value["data_offsets"]
        whole = [*shape, begin, end]
    except (TypeError, KeyError, ValueError) as e:
        raise CheckpointError(f"{path}: tensor {name!r} lacks dtype, shape or two data_offsets") from e
    if {*map(type, whole)} - {int} or not 0 <= min(whole) <= max(whole) < 2**48 or len(shape) > 8:
        raise CheckpointError(f"{path}: tensor {name!r} has an impossible shape or offset: {str(whole)[:80]}")
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise CheckpointError(
            f"{path}: tensor {name!r} has the unknown dtype {str(dtype)[:20]!r}; take a checkpoint in BF16, F16 or F32"
        )
    wanted = math.prod(shape) * ITEM_BYTES[dtype]
    if end - begin != wanted:
        raise CheckpointError(
            f"{path}: tensor {name!r} of shape {shape} and dtype {dtype} needs {wanted} bytes,"
            f" its offsets hold {end - begin}"
        )
    return TensorEntry(name, path, dtype, tuple(shape), start + begin, wanted)


def _check_tiling(path: Path, entries: dict[str, TensorEntry], start: int, file_bytes: int) -> None:
    """Raise CheckpointError unless the tensors fill the file exactly, without overlap or hole."""
    at = start
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].offset, item[1].size_bytes)):
        if entry.offset != at:
            raise CheckpointError(f"{path}: tensor {name!r} begins at byte {entry.offset}, expected {at}")
        at += entry.size_bytes
    if at != file_bytes:
        raise CheckpointError(
            f"{path} has {file_bytes} bytes, its header describes {at}; it is truncated or damaged, fetch it again"
        )
