"""Open a checkpoint and read parts of its tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from ollampi.kernels import pages
from ollampi.kernels.groups import GROUP, ROWS
from ollampi.mpiruntime.checkpoint_files import checkpoint_entries
from ollampi.mpiruntime.gguf_source import open_gguf
from ollampi.mpiruntime.lora import merged
from ollampi.mpiruntime.paired import unpaired
from ollampi.mpiruntime.prequantised import prequantised_sources
from ollampi.mpiruntime.reading import Files, Reading
from ollampi.mpiruntime.source import DTYPES, Rows, Source, StoredPlain

_PIECE_BYTES = 8 << 20  # of a matrix in fp32, at most: what is held beside the shard while reading
_CACHED_BYTES = 2 << 20  # the same where nothing but a copy is made of it, from what stays in a core's cache
_STRETCH_BYTES = 64 << 20  # of what is read straight into the shard, between two calls of `progress`


def _as_is(rows: Tensor) -> Tensor:
    return rows


def _nobody(passed: int, total: int) -> None:
    """Do nothing."""


@dataclass
class Checkpoint:
    """The tensors of a model by name, and what has been read of them.

    adapters: the folders of those that are merged into them; reading: how their bytes come to this rank; progress:
    called with the bytes of the tensors that are done and of all, whatever part of them a rank reads.
    """

    folder: Path
    sources: dict[str, Source]
    adapters: list[Path] = field(default_factory=list)
    reading: Reading = field(default_factory=Files)
    unread: set[str] = field(default_factory=set)
    progress: Callable[[int, int], None] = _nobody
    _passed: int = 0
    _scratch: Tensor | None = None

    def __post_init__(self) -> None:
        self.unread = set(self.sources)

    @cached_property
    def total_bytes(self) -> int:
        """Return the bytes of all tensors."""
        return sum(source.size_bytes for source in self.sources.values())

    @property
    def files(self) -> set[Path]:
        """Return the files that hold the tensors."""
        return {source.path for source in self.sources.values()}

    def read(
        self,
        name: str,
        rows: range,
        columns: range | None,
        take: Callable[[Rows], None],
        keep: Callable[[Tensor], Tensor] = _as_is,
    ) -> None:
        """Hand rows (and columns) of the matrix or vector `name` to `take`, a few at a time, in order; it keeps none.

        keep: what is taken of whole rows [R, width] of a matrix. Raise CheckpointError where the file cannot be read.
        """
        source = self.sources[name]
        width = source.shape[-1] if len(source.shape) > 1 else 1
        piece = _CACHED_BYTES if self.reading.alone and isinstance(source, StoredPlain) else _PIECE_BYTES
        piece = max(1, piece // (4 * max(1, width)))
        piece -= piece % ROWS if piece > ROWS else 0  # whole panels are quantised without a copy
        wanted = self.reading.together(rows)
        for first in range(wanted.start, wanted.stop, piece):
            self._tell(name, first - wanted.start, len(wanted))
            found = source.rows(first, min(first + piece, wanted.stop), self._bytes_of(source))
            if wanted != rows:
                found = _taken(found, slice(max(0, rows.start - first), max(0, rows.stop - first)))
            if found.values.dim() == 2:
                found = Rows(keep(found.values), found.scales)
            if len(found.values):
                take(found if columns is None else _cut(found, columns))
            del found  # before the next ones are read
        self.mark(name)

    def read_into(self, name: str, rows: range, out: Tensor) -> None:
        """Read rows of a tensor for which `lies_as` is true into out [len(rows), width]; raise CheckpointError."""
        source = self.sources[name]
        assert isinstance(source, StoredPlain)
        view = out.view(-1).view(torch.uint8)
        begin = source.entry.offset + rows.start * (len(view) // max(1, len(rows)))
        for at in range(0, len(view), _STRETCH_BYTES):
            self._tell(name, at, len(view))
            self.reading.fill(view[at : at + _STRETCH_BYTES], source.path, begin + at, name)
        self.mark(name)

    def lies_as(self, name: str, dtype: torch.dtype) -> bool:
        """Return whether this rank reads for itself, and finds the tensor's rows in its file as they are in memory."""
        source = self.sources[name]
        return self.reading.alone and isinstance(source, StoredPlain) and DTYPES.get(source.kind) == dtype

    def _bytes_of(self, source: Source) -> Callable[[Path, int, int], Tensor]:
        """Return what reads bytes for a source."""

        def read(path: Path, offset: int, count: int) -> Tensor:
            """Return `count` bytes of a file."""
            data = self._room(count) if isinstance(source, StoredPlain) else pages.empty((count,), torch.uint8)
            self.reading.fill(data, path, offset, source.name)
            return data

        return read

    def _room(self, count: int) -> Tensor:
        """Return `count` bytes, the same at each call: what malloc is asked for anew leaves holes in its heap."""
        if self._scratch is None or len(self._scratch) < count:
            self._scratch = torch.empty(count, dtype=torch.uint8)
        return self._scratch[:count]

    def _tell(self, name: str, done: int, size: int) -> None:
        """Tell `progress` of a tensor of which a part is done, if it was not read before."""
        if done and name in self.unread:
            self.progress(self._passed + self.sources[name].size_bytes * done // size, self.total_bytes)

    def mark(self, name: str) -> None:
        """Note that a tensor need not be read any more, and tell `progress`."""
        if name in self.unread:
            self.unread.remove(name)
            self._passed += self.sources[name].size_bytes
            self.progress(self._passed, self.total_bytes)

    def finish(self) -> None:
        """Tell `progress` that nothing more will be read."""
        self._scratch = None
        self.progress(self.total_bytes, self.total_bytes)


def _taken(rows: Rows, part: slice) -> Rows:
    """Return some of the rows."""
    return Rows(rows.values[part], None if rows.scales is None else rows.scales[part])


def _cut(rows: Rows, columns: range) -> Rows:
    """Return some columns of rows; groups of scales are cut between groups only, or are lost."""
    values = rows.values[:, columns.start : columns.stop]
    whole = columns.start % GROUP == 0 and (columns.stop % GROUP == 0 or columns.stop == rows.values.shape[1])
    if rows.scales is None or not whole:
        return Rows(values)
    return Rows(values, rows.scales[:, columns.start // GROUP : -(-columns.stop // GROUP)])


def open_checkpoint(
    folder: Path, adapters: Sequence[str] = (), paired: tuple[tuple[str, ...], int] | None = None
) -> Checkpoint:
    """Return the checkpoint in `folder`, or in a GGUF file, with LoRA adapters merged in turn.

    paired: what model_config.paired_heads returns. Raise CheckpointError where one is incomplete, damaged, quantised in
    a way that is not read, or for another model.
    """

    files = Files()

    def read(path: Path, offset: int, count: int) -> Tensor:
        """Return `count` bytes of a file."""
        data = torch.empty(count, dtype=torch.uint8)
        files.fill(data, path, offset, "g_idx or qzeros")
        return data

    if folder.is_file():
        sources = open_gguf(folder)
    else:
        found = prequantised_sources(folder, checkpoint_entries(folder), read)
        sources = {**found.sources, **{name: StoredPlain(entry) for name, entry in found.rest.items()}}
    for adapter in adapters:
        sources = merged(sources, Path(adapter))
    if paired is not None:
        sources = unpaired(sources, *paired)
    return Checkpoint(folder, sources, [Path(adapter) for adapter in adapters])
