"""Read the header of a safetensors file, with limits, and never its tensors."""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ollampi.mpiruntime.errors import CheckpointError

MAX_HEADER_BYTES = 100 << 20
MAX_TENSORS = 100_000
_MAX_ELEMENTS = 2**48


@dataclass(frozen=True)
class TensorInfo:
    """A tensor as its header describes it."""

    name: str
    dtype: str
    shape: list[int]

    @property
    def num_elements(self) -> int:
        """Return how many values the tensor holds."""
        return math.prod(self.shape)


def read_header_bytes(path: Path) -> bytes:
    """Return the JSON header as it stands in the file; raise CheckpointError where it cannot be right."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if len(start) < 8:
            raise CheckpointError(f"{path.name} has {size} bytes, too few for a safetensors file; copy it again")
        (length,) = struct.unpack("<Q", start)
        if length > MAX_HEADER_BYTES or length > size - 8:
            raise CheckpointError(f"{path.name} claims a header of {length} bytes in {size}; copy the file again")
        return file.read(length)


def read_header(path: Path) -> list[TensorInfo]:
    """Return the tensors that a safetensors file lists, in name order; raise CheckpointError."""
    return parse_header(path.name, read_header_bytes(path), path.stat().st_size)


def parse_header(name: str, header: bytes, file_bytes: int) -> list[TensorInfo]:
    """Return the tensors of a header that was read from a file of `file_bytes`; raise CheckpointError."""
    try:
        entries = json.loads(header)
    except (ValueError, RecursionError) as e:
        raise CheckpointError(f"{name} has a header that is not JSON; copy the file again") from e
    if not isinstance(entries, dict) or len(entries) > MAX_TENSORS:
        raise CheckpointError(f"{name} must list at most {MAX_TENSORS} tensors in a JSON object")
    data_bytes = file_bytes - 8 - len(header)
    return [_tensor(name, key, entries[key], data_bytes) for key in sorted(entries) if key != "__metadata__"]


def _tensor(file: str, name: str, entry: Any, data_bytes: int) -> TensorInfo:
    """Return one checked entry of a header."""
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        sound = isinstance(dtype, str) and all(type(n) is int and n >= 0 for n in (*shape, begin, end))
        sound = sound and begin <= end <= data_bytes and math.prod(shape) <= _MAX_ELEMENTS
    except (KeyError, TypeError, ValueError):
        sound = False
    if not sound:
        raise CheckpointError(f"{file} describes tensor {name[:100]!r} beyond the file or not at all; copy it again")
    return TensorInfo(name, dtype, list(shape))
