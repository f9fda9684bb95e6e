"""Read the part of a checkpoint that a rank owns, straight from the safetensors files."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from ollampi.kernels.groups import ROWS
from ollampi.kernels.linear import Matrix
from ollampi.kernels.quantised import NotFinite
from ollampi.mpiruntime.arithmetic import Arithmetic, Plain
from ollampi.mpiruntime.errors import CheckpointError
from ollampi.mpiruntime.filling import Filling, PlainFilling, QuantisedFilling
from ollampi.mpiruntime.prequantised import refuse_quantised
from ollampi.mpiruntime.safetensors_header import ITEM_BYTES, TensorEntry, read_header
from ollampi.mpiruntime.shard_file import ShardFile

M = TypeVar("M", bound=Matrix)

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}
_PIECE_BYTES = 8 << 20  # what is held beside the shard while reading


def _as_is(rows: Tensor) -> Tensor:
    return rows


def _nobody(passed: int, total: int) -> None:
    """Do nothing."""


@dataclass
class Checkpoint:
    """The tensors of a model folder by name, and what has been read of them.

    progress: called with the bytes of the tensors that are done and of all, whatever part of them a rank reads.
    """

    folder: Path
    entries: dict[str, TensorEntry]
    bytes_read: int = 0
    unread: set[str] = field(default_factory=set)
    progress: Callable[[int, int], None] = _nobody
    _passed: int = 0

    @cached_property
    def total_bytes(self) -> int:
        """Return the bytes of all tensors."""
        return sum(entry.size_bytes for entry in self.entries.values())

    def read(
        self,
        name: str,
        rows: range,
        columns: range | None,
        take: Callable[[Tensor], None],
        keep: Callable[[Tensor], Tensor] = _as_is,
    ) -> None:
        """Hand rows (and columns) of the matrix or vector `name` to `take`, a few at a time, in order.

        keep: what is taken of whole rows [R, width] of a matrix. Raise CheckpointError where the file cannot be read.
        """
        entry = self.entries[name]
        width = entry.shape[1] if len(entry.shape) == 2 else 1
        row_bytes = width * ITEM_BYTES[entry.dtype]
        piece = max(1, _PIECE_BYTES // row_bytes)
        piece -= piece % ROWS if piece > ROWS else 0  # whole panels are quantised without a copy
        try:
            file = entry.path.open("rb")
        except OSError as e:
            raise _unreadable(name, entry, e) from e
        with file:
            for first in range(rows.start, rows.stop, piece):
                last = min(first + piece, rows.stop)
                values = self._rows(file.fileno(), entry, first, last)
                if values.dim() == 2:
                    values = keep(values)
                take(values if columns is None else values[:, columns.start : columns.stop])
                del values  # before the next ones are read
        self.mark(name)

    def _rows(self, file: int, entry: TensorEntry, first: int, last: int) -> Tensor:
        """Return rows [last - first, width] of a matrix, or values of a vector, as they are in the file."""
        size, num_rows = entry.size_bytes // max(1, entry.shape[0]), last - first
        raw = _read_exactly(file, entry.offset + first * size, num_rows * size, entry.name, entry)
        self.bytes_read += len(raw)
        return torch.frombuffer(raw, dtype=_DTYPES[entry.dtype]).view(num_rows, *entry.shape[1:])

    def mark(self, name: str) -> None:
        """Note that a tensor need not be read any more, and tell `progress`."""
        if name in self.unread:
            self.unread.remove(name)
            self._passed += self.entries[name].size_bytes
            self.progress(self._passed, self.total_bytes)

    def finish(self) -> None:
        """Tell `progress` that nothing more will be read."""
        self.progress(self.total_bytes, self.total_bytes)


def _read_exactly(file: int, offset: int, count: int, name: str, entry: TensorEntry) -> bytearray:
    """Return `count` bytes of the file; raise CheckpointError where it ends before."""
    data = bytearray(count)
    view, got = memoryview(data), 0
    while got < count:
        try:
            part = os.preadv(file, [view[got:]], offset + got)
        except OSError as e:
            raise _unreadable(name, entry, e) from e
        if part == 0:
            raise CheckpointError(
                f"{entry.path}: tensor {name!r} ends after {got} of {count} bytes; fetch the file again"
            )
        got += part
    return data


def _unreadable(name: str, entry: TensorEntry, error: OSError) -> CheckpointError:
    return CheckpointError(
        f"{entry.path}: tensor {name!r} cannot be read: {error.strerror}; check the file and its file system"
    )


def open_checkpoint(folder: Path) -> Checkpoint:
    """Return the checkpoint in `folder`: model.safetensors, or the files that its index names.

    Raise CheckpointError where files are missing, damaged or quantised already.
    """
    index = folder / "model.safetensors.index.json"
    entries: dict[str, TensorEntry] = {}
    for path in _indexed_files(index) if index.is_file() else _plain_files(folder):
        for name, entry in read_header(path).items():
            if name in entries:
                raise CheckpointError(f"tensor {name!r} is in {entries[name].path.name} and in {path.name} of {folder}")
            entries[name] = entry
    refuse_quantised(folder, entries.values())
    return Checkpoint(folder, entries, unread=set(entries))


def _plain_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a folder without an index."""
    single = folder / "model.safetensors"
    files = [single] if single.is_file() else sorted(folder.glob("*.safetensors"))
    if not files:
        others = [p.name for p in folder.glob("*") if p.suffix in (".bin", ".pt", ".pth")]
        hint = f"; {others[0]} is a pickle and is not read, convert it to safetensors" if others else ""
        raise CheckpointError(f"no *.safetensors in {folder}{hint}")
    return files


def _indexed_files(index: Path) -> list[Path]:
    """Return the files that an index names; all must lie beside it."""
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as e:
        raise CheckpointError(f"{index} holds no weight_map of tensor names to file names") from e
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointError(f"{index} names the file {name!r}; it must be a *.safetensors file beside the index")
        if not (index.parent / name).is_file():
            raise CheckpointError(f"{index.parent / name} is missing; {index.name} names it, fetch it again")
    return [index.parent / name for name in names]


@dataclass(frozen=True)
class Weights:
    """A checkpoint seen from a prefix: `weights / "layers.0"` narrows it; layers take the part that they own.

    dtype is that of the tensors returned, arithmetic what they are computed with, bits what matrices are quantised to,
    None for not at all, shards where quantised ones are kept. Errors name the file, the tensor, what was wanted and
    what was found.
    """

    checkpoint: Checkpoint
    dtype: torch.dtype
    arithmetic: Arithmetic = field(default_factory=Plain)
    bits: int | None = None
    shards: ShardFile | None = None
    prefix: str = ""

    def __truediv__(self, name: str) -> Weights:
        return replace(self, prefix=f"{self.prefix}{name}.")

    def __contains__(self, name: str) -> bool:
        return self.prefix + name in self.checkpoint.entries

    def vector(self, name: str, size: int, part: range | None = None) -> Tensor:
        """Return the vector [size], or its part."""
        part = part or range(size)
        pieces: list[Tensor] = []
        full = self._checked(name, (size,))
        self.checkpoint.read(full, part, None, lambda v: pieces.append(v.to(self.dtype)))
        vector = torch.cat(pieces) if pieces else torch.empty(0, dtype=self.dtype)
        if self.bits is not None and not vector.isfinite().all():
            raise self._not_finite(full)
        return vector

    def rows(self, name: str, shape: tuple[int, int], part: range) -> Matrix:
        """Return rows `part` of the matrix of `shape` as [len(part), shape[1]]."""
        return self.stacked_rows([(name, shape, part)])

    def columns(self, name: str, shape: tuple[int, int], part: range) -> Matrix:
        """Return columns `part` of the matrix of `shape` as [shape[0], len(part)]."""
        return self._matrix([(name, shape, range(shape[0]))], part)

    def stacked_rows(self, parts: list[tuple[str, tuple[int, int], range]]) -> Matrix:
        """Return rows of several matrices of equal width under each other as [sum of rows, width]."""
        return self._matrix(parts, range(parts[0][1][1]))

    def _matrix(self, parts: list[tuple[str, tuple[int, int], range]], columns: range) -> Matrix:
        """Return rows of several matrices under each other, and of these some columns."""
        named = [(self._checked(name, shape), rows, columns) for name, shape, rows in parts]
        num_rows, width = sum(len(rows) for _, rows, _ in named), len(columns)
        if self.bits is None:
            return self._filled(PlainFilling(num_rows, width, self.dtype), named)
        if self.shards is None:
            return self._filled(QuantisedFilling(num_rows, width, self.bits, self.dtype), named)
        cut = "+".join(f"{full}[{r.start}:{r.stop},{c.start}:{c.stop}]" for full, r, c in named)
        matrix = self.shards.matrix(cut, num_rows, width, self.bits, self.dtype)
        if matrix is None:
            matrix = self._filled(QuantisedFilling(num_rows, width, self.bits, self.dtype), named)
            self.shards.keep(cut, matrix)
        for full, _, _ in named:
            self.checkpoint.mark(full)
        return matrix

    def _filled(self, filling: Filling[M], parts: list[tuple[str, range, range]]) -> M:
        """Return the matrix whose rows are read from parts of tensors in turn."""
        for full, rows, columns in parts:
            try:
                self.checkpoint.read(full, rows, columns, filling.add, self.arithmetic.weight_rows)
            except NotFinite as e:
                raise self._not_finite(full) from e
        return filling.matrix()

    def _not_finite(self, full: str) -> CheckpointError:
        """Return the error for a tensor that cannot be quantised."""
        return CheckpointError(
            f"{self.checkpoint.entries[full].path}: tensor {full!r} holds NaN or infinity, which cannot be quantised;"
            " fetch the file again, or look at the model with quantize=none"
        )

    def _checked(self, name: str, shape: tuple[int, ...]) -> str:
        """Return the full name of a tensor that exists with this shape and a dtype that can be read."""
        full = self.prefix + name
        entry = self.checkpoint.entries.get(full)
        if entry is None:
            raise CheckpointError(
                f"tensor {full!r} of shape {list(shape)} is missing in {self.checkpoint.folder}"
                f" ({len(self.checkpoint.entries)} tensors); the checkpoint is incomplete or of another model type"
            )
        if entry.shape != shape:
            raise CheckpointError(
                f"{entry.path}: tensor {full!r} has shape {list(entry.shape)}, config.json wants {list(shape)}"
            )
        if entry.dtype not in _DTYPES:
            raise CheckpointError(
                f"{entry.path}: tensor {full!r} has dtype {entry.dtype}; readable are {', '.join(_DTYPES)}"
            )
        return full
