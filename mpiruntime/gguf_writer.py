"""Write a GGUF file of version 3: keys with their values, a table of tensors, and the tensors' bytes as they come.

https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import BinaryIO

from ollampi.mpiruntime.errors import CheckpointError
from ollampi.mpiruntime.gguf_fields import Value
from ollampi.mpiruntime.gguf_header import MAGIC
from ollampi.mpiruntime.gguf_types import BLOCKS, Blocks

ALIGNMENT = 32  # what readers take where general.alignment is not given
_VERSION = 3
_NUMBERS = {blocks.name: number for number, blocks in BLOCKS.items()}


class Kind(IntEnum):
    """The types of values."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


_LETTERS = {
    Kind.UINT8: "B", Kind.INT8: "b", Kind.UINT16: "H", Kind.INT16: "h", Kind.UINT32: "I", Kind.INT32: "i",
    Kind.FLOAT32: "f", Kind.BOOL: "?", Kind.UINT64: "Q", Kind.INT64: "q", Kind.FLOAT64: "d",
}  # fmt: skip


@dataclass(frozen=True)
class NewTensor:
    """A tensor to be written; shape: rows first, as torch has it; pieces: what returns its bytes, in order."""

    name: str
    blocks: Blocks
    shape: tuple[int, ...]
    pieces: Callable[[], Iterable[bytes | memoryview]]

    @property
    def size_bytes(self) -> int:
        """Return the tensor's bytes."""
        rows = 1
        for count in self.shape[:-1]:
            rows *= count
        return rows * self.blocks.row_bytes(self.shape[-1])


def blocks_of(name: str) -> Blocks:
    """Return a type of tensors by its name."""
    return BLOCKS[_NUMBERS[name]]


def entry(key: str, value: Value, kind: Kind | None = None) -> bytes:
    """Return a key with its value as they stand in a file.

    kind: of the value, or of the items of a list; without it whole numbers are uint32, or int32 where one is below 0,
    and others float32. Raise ValueError where the value does not fit.
    """
    if isinstance(value, list):
        return _text(key) + struct.pack("<I", Kind.ARRAY) + _array(value, kind)
    kind = _kind_of([value]) if kind is None else kind
    return _text(key) + struct.pack("<I", kind) + _items([value], kind)


def write_gguf(path: Path, entries: Mapping[str, bytes], tensors: Sequence[NewTensor]) -> None:
    """Write a file of keys (as `entry` makes them, by key) and tensors; nothing but one piece of a tensor is held.

    The file is neither flushed to the disk nor given another name. Where anything fails it is removed. Raise OSError,
    and what a tensor's pieces raise.
    """
    try:
        with path.open("wb") as file:
            file.write(MAGIC + struct.pack("<IQQ", _VERSION, len(tensors), len(entries)))
            for each in entries.values():
                file.write(each)
            _write_table(file, tensors)
            for tensor in tensors:
                _fill(file)
                _write_tensor(file, tensor)
            _fill(file)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _write_table(file: BinaryIO, tensors: Sequence[NewTensor]) -> None:
    """Write names, shapes, types and offsets."""
    offset = 0
    for tensor in tensors:
        file.write(_text(tensor.name) + struct.pack("<I", len(tensor.shape)))
        file.write(struct.pack(f"<{len(tensor.shape)}Q", *reversed(tensor.shape)))
        file.write(struct.pack("<IQ", _NUMBERS[tensor.blocks.name], offset))
        offset += -(-tensor.size_bytes // ALIGNMENT) * ALIGNMENT


def _write_tensor(file: BinaryIO, tensor: NewTensor) -> None:
    """Write a tensor's bytes; raise CheckpointError where they are not as many as its shape says."""
    written = 0
    for piece in tensor.pieces():
        written += file.write(piece)
    if written != tensor.size_bytes:
        raise CheckpointError(f"tensor {tensor.name!r} has {written} bytes, its shape needs {tensor.size_bytes}")


def _fill(file: BinaryIO) -> None:
    """Write zeros up to the next place where a tensor may begin."""
    file.write(bytes(-file.tell() % ALIGNMENT))


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _array(items: list[Value], kind: Kind | None) -> bytes:
    """Return the type and the number of items, and the items."""
    kind = _kind_of(items) if kind is None or (items and isinstance(items[0], str | list)) else kind
    return struct.pack("<IQ", kind, len(items)) + _items(items, kind)


def _items(items: list[Value], kind: Kind) -> bytes:
    """Return values of one type."""
    try:
        if kind is Kind.STRING:
            return b"".join(_text(str(item)) for item in items)
        if kind is Kind.ARRAY:
            return b"".join(_array(item, None) for item in items if isinstance(item, list))
        return struct.pack(f"<{len(items)}{_LETTERS[kind]}", *items)
    except (struct.error, OverflowError) as e:
        raise ValueError(f"{str(items)[:80]} cannot be written as {kind.name}: {e}") from e


def _kind_of(items: list[Value]) -> Kind:
    """Return the type that fits all items, which are of one type of Python; of none, uint32."""
    first = next(iter(items), 0)
    if isinstance(first, bool):
        return Kind.BOOL
    if isinstance(first, str):
        return Kind.STRING
    if isinstance(first, list):
        return Kind.ARRAY
    numbers = [item for item in items if isinstance(item, int | float)]
    if any(isinstance(number, float) for number in numbers):
        return Kind.FLOAT32
    low, high = min(numbers, default=0), max(numbers, default=0)
    if low < 0:
        return Kind.INT32 if low >= -(2**31) and high < 2**31 else Kind.INT64
    return Kind.UINT32 if high < 2**32 else Kind.UINT64
