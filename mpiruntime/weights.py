"""Give layers the parts of tensors that they own: read from a checkpoint, or only counted."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Self, TypeVar

import torch
from torch import Tensor

from ollampi.kernels.linear import Matrix, copy
from ollampi.kernels.quantised import NotExact, NotFinite, moved, stored_bytes
from ollampi.mpiruntime.arithmetic import Arithmetic, Plain
from ollampi.mpiruntime.checkpoint import Checkpoint
from ollampi.mpiruntime.errors import CheckpointError
from ollampi.mpiruntime.filling import ExactFilling, Filling, PlainFilling, QuantisedFilling
from ollampi.mpiruntime.layout import Place
from ollampi.mpiruntime.memory import BITS
from ollampi.mpiruntime.residence import InMemory, Residence, Run
from ollampi.mpiruntime.shard_file import ShardFile
from ollampi.mpiruntime.source import DTYPES, Source, StoredPlain

CPU = torch.device("cpu")
M = TypeVar("M", bound=Matrix)


class Piece(NamedTuple):
    """Some rows and columns of a matrix by its full name."""

    name: str
    rows: range
    columns: range

    def __str__(self) -> str:
        return f"{self.name}[{self.rows.start}:{self.rows.stop},{self.columns.start}:{self.columns.stop}]"


class Format(NamedTuple):
    """How a quantised matrix is kept: its bits, and whether these hold the checkpoint's own numbers exactly."""

    bits: int
    exact: bool


@dataclass(frozen=True)
class Weights(ABC):
    """A model's tensors seen from a prefix: `weights / "layers.0"` narrows it; layers take the part that they own.

    dtype is that of the tensors returned, arithmetic what they are computed with; quantize: none, q8, q4, or auto for
    what each matrix is kept in. sources: the tensors that there are, None where nobody knows; errors name the file, the
    tensor, what was wanted and what was found. residence: where the matrices of layers are; device: where all tensors
    are, which get there one by one.
    """

    dtype: torch.dtype
    arithmetic: Arithmetic = field(default_factory=Plain)
    quantize: str = "none"
    sources: Mapping[str, Source] | None = None
    prefix: str = ""
    residence: Residence = field(default_factory=InMemory)
    device: torch.device = CPU

    def __truediv__(self, name: str) -> Self:
        return replace(self, prefix=f"{self.prefix}{name}." if name else self.prefix)

    def __contains__(self, name: str) -> bool:
        return self.sources is None or self.prefix + name in self.sources

    def each_layer(self, name: str, count: int) -> Iterator[Self]:
        """Yield the weights of the layers with this name, which takes their number, each to be built in its turn."""
        return (self / name.format(i) for i in range(count))

    def vector(self, name: str, size: int, part: range | None = None, dtype: torch.dtype | None = None) -> Tensor:
        """Return the vector [size], or its part, in a dtype other than that of the others where one is given."""
        return self._vector(self._checked(name, (size,)), part or range(size), dtype or self.dtype)

    def rows(self, name: str, shape: tuple[int, int], part: range) -> Matrix:
        """Return rows `part` of the matrix of `shape` as [len(part), shape[1]]."""
        return self.stacked_rows([(name, shape, part)])

    def columns(self, name: str, shape: tuple[int, int], part: range) -> Matrix:
        """Return columns `part` of the matrix of `shape` as [shape[0], len(part)]."""
        return self._matrix([Piece(self._checked(name, shape), range(shape[0]), part)])

    def stacked_rows(self, parts: list[tuple[str, tuple[int, int], range]]) -> Matrix:
        """Return some rows of several matrices of equal width under each other as [sum of rows, width]."""
        return self._matrix([Piece(self._checked(name, shape), rows, range(shape[1])) for name, shape, rows in parts])

    def plain_rows(self, name: str, shape: tuple[int, int]) -> Tensor:
        """Return the whole matrix of `shape` as [*shape] in fp32, whatever the others are kept in."""
        return self._plain([Piece(self._checked(name, shape), *map(range, shape))], torch.float32)

    @abstractmethod
    def stand_by(self, names: list[str]) -> None:
        """Take part where other ranks read tensors that they own and this one does not."""

    def format(self, pieces: list[Piece]) -> Format | None:
        """Return what a matrix of these pieces is kept in, None for plain numbers."""
        if self.quantize == "none" or (self.quantize == "auto" and self.sources is None):
            return None
        found = [] if self.sources is None else [self.sources[piece.name] for piece in pieces]
        held = [source.bits for source in found]
        if self.quantize != "auto":
            bits = BITS[self.quantize]
            return Format(bits, bool(held) and all(own is not None and own <= bits for own in held))
        if all(source.kind in DTYPES for source in found):
            return None
        known = [own for own in held if own is not None]
        return Format(max(known), True) if len(known) == len(held) else Format(8, False)

    @abstractmethod
    def _vector(self, name: str, part: range, dtype: torch.dtype) -> Tensor:
        """Return a part of a vector by its full name."""

    @abstractmethod
    def _matrix(self, pieces: list[Piece]) -> Matrix:
        """Return pieces of matrices under each other, in their format."""

    @abstractmethod
    def _plain(self, pieces: list[Piece], dtype: torch.dtype) -> Tensor:
        """Return pieces of matrices under each other, as plain numbers."""

    def _checked(self, name: str, shape: tuple[int, ...]) -> str:
        """Return the full name of a tensor that exists with this shape and a dtype that can be read."""
        full = self.prefix + name
        if self.sources is None:
            return full
        source = self.sources.get(full)
        if source is None:
            path = next((source.path.parent for source in self.sources.values()), "the checkpoint")
            raise CheckpointError(
                f"tensor {full!r} of shape {list(shape)} is missing in {path} ({len(self.sources)} tensors);"
                " the checkpoint is incomplete or of another model type"
            )
        if source.shape != shape:
            raise CheckpointError(
                f"{source.path}: tensor {full!r} has shape {list(source.shape)}, config.json wants {list(shape)}"
            )
        if isinstance(source, StoredPlain) and source.kind not in DTYPES:
            raise CheckpointError(
                f"{source.path}: tensor {full!r} has dtype {source.kind}; readable are {', '.join(DTYPES)}"
            )
        return full


@dataclass(frozen=True)
class Counted(Weights):
    """Tensors that take no memory and tell what they would take: bytes of their own for quantised matrices.

    layout: where matrices of layers are added, for each layer that is built.
    """

    layout: list[list[Place]] = field(default_factory=list)
    run: list[Place] | None = None

    def each_layer(self, name: str, count: int) -> Iterator[Self]:
        """Yield the weights of each layer, whose matrices are added to the layout."""
        for i in range(count):
            self.layout.append([])
            yield replace(self / name.format(i), run=self.layout[-1])

    def stand_by(self, names: list[str]) -> None:
        """Do nothing."""

    def _vector(self, name: str, part: range, dtype: torch.dtype) -> Tensor:
        """Return a tensor without memory."""
        return torch.empty(len(part), dtype=dtype, device="meta")

    def _matrix(self, pieces: list[Piece]) -> Matrix:
        """Return a tensor without memory."""
        form = self.format(pieces)
        if self.run is not None:
            bits, exact = (None, False) if form is None else form
            self.run.append(Place(_joined(pieces), *_shape(pieces), bits, exact, self.dtype))
        if form is None:
            return self._plain(pieces, self.dtype)
        size = stored_bytes(*_shape(pieces), form.bits)
        return torch.empty(size, dtype=torch.uint8, device="meta")

    def _plain(self, pieces: list[Piece], dtype: torch.dtype) -> Tensor:
        """Return a tensor without memory."""
        return torch.empty(_shape(pieces), dtype=dtype, device="meta")


@dataclass(frozen=True, kw_only=True)
class Loaded(Weights):
    """Tensors read from a checkpoint; shards: where quantised ones are kept for the next time.

    run: where the matrices of a layer that these are the weights of are made, None for anywhere.
    """

    checkpoint: Checkpoint
    shards: ShardFile | None = None
    run: Run | None = None

    def each_layer(self, name: str, count: int) -> Iterator[Self]:
        """Yield the weights of each layer."""
        for i, run in enumerate(self.residence.runs(count)):
            yield replace(self / name.format(i), run=run, shards=self.shards if run is None else None)

    def stand_by(self, names: list[str]) -> None:
        """Take part in the reading of tensors that other ranks own; collective where all read together."""
        for name in names:
            if name in self:  # else their owner says so
                self.checkpoint.read(self.prefix + name, range(0), None, lambda rows: None)

    def _vector(self, name: str, part: range, dtype: torch.dtype) -> Tensor:
        """Return a part of a vector."""
        found: list[Tensor] = []
        self.checkpoint.read(name, part, None, lambda rows: found.append(rows.values.to(dtype, copy=True)))
        vector = torch.cat(found) if found else torch.empty(0, dtype=dtype)
        if self.quantize in BITS and not vector.isfinite().all():
            raise self._not_finite(name)
        return vector.to(self.device)

    def _plain(self, pieces: list[Piece], dtype: torch.dtype) -> Tensor:
        """Return pieces of matrices as plain numbers."""
        filling = PlainFilling(*_shape(pieces), dtype, pinned=self.device.type == "cuda")
        return self._filled(filling, pieces).to(self.device)

    def _matrix(self, pieces: list[Piece]) -> Matrix:
        """Return pieces of matrices under each other."""
        if self.run is None:
            return self._made(pieces)
        matrix = self.run.matrix(_joined(pieces))
        if not self.run.is_filled:
            copy(self._made(pieces), matrix)
        for piece in pieces:
            self.checkpoint.mark(piece.name)
        return matrix

    def _made(self, pieces: list[Piece]) -> Matrix:
        """Return pieces of matrices in memory of their own."""
        form = self.format(pieces)
        if form is None:
            return self._plain(pieces, self.dtype)
        kind = ExactFilling if form.exact else QuantisedFilling
        shape = _shape(pieces)
        if self.shards is None:
            return moved(self._filled(kind(*shape, form.bits, self.dtype), pieces), self.device)
        matrix = self.shards.matrix(_joined(pieces), *shape, form.bits, self.dtype)
        if matrix is None:
            matrix = self._filled(kind(*shape, form.bits, self.dtype), pieces)
            self.shards.keep(_joined(pieces), matrix)
        for piece in pieces:
            self.checkpoint.mark(piece.name)
        return moved(matrix, self.device)

    def _filled(self, filling: Filling[M], pieces: list[Piece]) -> M:
        """Return the matrix whose rows are read from pieces in turn."""
        for name, rows, columns in pieces:
            width = self.checkpoint.sources[name].shape[-1]
            some = None if len(columns) == width else columns
            if isinstance(filling, PlainFilling) and some is None and self._as_they_lie(name, filling.matrix().dtype):
                self.checkpoint.read_into(name, rows, filling.room(len(rows)))
                continue
            try:
                self.checkpoint.read(name, rows, some, filling.add, self.arithmetic.weight_rows)
            except NotFinite as e:
                raise self._not_finite(name) from e
            except NotExact as e:
                raise CheckpointError(
                    f"{self.checkpoint.sources[name].path}: tensor {name!r} holds numbers that its format has not;"
                    " fetch the file again, or use quantize=none"
                ) from e
        return filling.matrix()

    def _as_they_lie(self, name: str, dtype: torch.dtype) -> bool:
        """Return whether whole rows of a tensor need no change on their way into a matrix."""
        return isinstance(self.arithmetic, Plain) and self.checkpoint.lies_as(name, dtype)

    def _not_finite(self, name: str) -> CheckpointError:
        """Return the error for a tensor that cannot be quantised."""
        return CheckpointError(
            f"{self.checkpoint.sources[name].path}: tensor {name!r} holds NaN or infinity, which cannot be quantised;"
            " fetch the file again, or look at the model with quantize=none"
        )


def _shape(pieces: list[Piece]) -> tuple[int, int]:
    """Return the shape of pieces under each other."""
    return sum(len(piece.rows) for piece in pieces), len(pieces[0].columns)


def _joined(pieces: list[Piece]) -> str:
    """Return the name of a matrix that is made of pieces."""
    return "+".join(map(str, pieces))
