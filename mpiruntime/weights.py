"""Give layers the parts of tensors that they own: read from a checkpoint, or only counted."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import Self, TypeVar

import torch
from torch import Tensor

from ollampi.kernels.linear import Matrix
from ollampi.kernels.quantised import NotFinite, stored_bytes
from ollampi.mpiruntime.arithmetic import Arithmetic, Plain
from ollampi.mpiruntime.checkpoint import Checkpoint
from ollampi.mpiruntime.errors import CheckpointError
from ollampi.mpiruntime.filling import Filling, PlainFilling, QuantisedFilling
from ollampi.mpiruntime.shard_file import ShardFile
from ollampi.mpiruntime.source import DTYPES, Rows
from ollampi.mpiruntime.source import Plain as PlainSource

M = TypeVar("M", bound=Matrix)

Part = tuple[str, tuple[int, int], range]  # the name of a matrix, its shape, and some of its rows


@dataclass(frozen=True)
class Weights(ABC):
    """A model's tensors seen from a prefix: `weights / "layers.0"` narrows it; layers take the part that they own.

    dtype is that of the tensors returned, arithmetic what they are computed with, bits what matrices are quantised to,
    None for not at all.
    """

    dtype: torch.dtype
    arithmetic: Arithmetic = field(default_factory=Plain)
    bits: int | None = None
    prefix: str = ""

    def __truediv__(self, name: str) -> Self:
        return replace(self, prefix=f"{self.prefix}{name}." if name else self.prefix)

    @abstractmethod
    def __contains__(self, name: str) -> bool: ...

    @abstractmethod
    def vector(self, name: str, size: int, part: range | None = None, dtype: torch.dtype | None = None) -> Tensor:
        """Return the vector [size], or its part, in a dtype other than that of the others where one is given."""

    def rows(self, name: str, shape: tuple[int, int], part: range) -> Matrix:
        """Return rows `part` of the matrix of `shape` as [len(part), shape[1]]."""
        return self.stacked_rows([(name, shape, part)])

    def columns(self, name: str, shape: tuple[int, int], part: range) -> Matrix:
        """Return columns `part` of the matrix of `shape` as [shape[0], len(part)]."""
        return self._matrix([(name, shape, range(shape[0]))], part)

    def stacked_rows(self, parts: list[Part]) -> Matrix:
        """Return rows of several matrices of equal width under each other as [sum of rows, width]."""
        return self._matrix(parts, range(parts[0][1][1]))

    @abstractmethod
    def plain_rows(self, name: str, shape: tuple[int, int]) -> Tensor:
        """Return the whole matrix of `shape` as [*shape] in fp32, whatever the others are kept in."""

    @abstractmethod
    def _matrix(self, parts: list[Part], columns: range) -> Matrix:
        """Return rows of several matrices under each other, and of these some columns."""


@dataclass(frozen=True)
class Counted(Weights):
    """Tensors that take no memory and tell what they would take; of any model that there is a config of."""

    def __contains__(self, name: str) -> bool:
        return True

    def vector(self, name: str, size: int, part: range | None = None, dtype: torch.dtype | None = None) -> Tensor:
        """Return a tensor [size] or [len(part)] without memory."""
        return torch.empty(size if part is None else len(part), dtype=dtype or self.dtype, device="meta")

    def plain_rows(self, name: str, shape: tuple[int, int]) -> Tensor:
        """Return a tensor [*shape] without memory."""
        return torch.empty(shape, device="meta")

    def _matrix(self, parts: list[Part], columns: range) -> Matrix:
        """Return a tensor without memory; of a quantised matrix its bytes."""
        num_rows, width = sum(len(rows) for _, _, rows in parts), len(columns)
        if self.bits is None:
            return torch.empty(num_rows, width, dtype=self.dtype, device="meta")
        return torch.empty(stored_bytes(num_rows, width, self.bits), dtype=torch.uint8, device="meta")


@dataclass(frozen=True, kw_only=True)
class Read(Weights):
    """Tensors of a checkpoint; shards: where quantised ones are kept for the next time.

    Errors name the file, the tensor, what was wanted and what was found.
    """

    checkpoint: Checkpoint
    shards: ShardFile | None = None

    def __contains__(self, name: str) -> bool:
        return self.prefix + name in self.checkpoint.sources

    def vector(self, name: str, size: int, part: range | None = None, dtype: torch.dtype | None = None) -> Tensor:
        """Return the vector [size], or its part."""
        pieces: list[Tensor] = []
        full = self._checked(name, (size,))
        into = dtype or self.dtype
        self.checkpoint.read(full, part or range(size), None, lambda rows: pieces.append(rows.values.to(into)))
        vector = torch.cat(pieces) if pieces else torch.empty(0, dtype=into)
        if self.bits is not None and not vector.isfinite().all():
            raise self._not_finite(full)
        return vector

    def plain_rows(self, name: str, shape: tuple[int, int]) -> Tensor:
        """Return the whole matrix [*shape] in fp32."""
        named = [(self._checked(name, shape), range(shape[0]), range(shape[1]))]
        return self._filled(PlainFilling(*shape, torch.float32), named)

    def _matrix(self, parts: list[Part], columns: range) -> Matrix:
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

        def add(rows: Rows) -> None:
            filling.add(rows.values)

        for full, rows, columns in parts:
            try:
                self.checkpoint.read(full, rows, columns, add, self.arithmetic.weight_rows)
            except NotFinite as e:
                raise self._not_finite(full) from e
        return filling.matrix()

    def _not_finite(self, full: str) -> CheckpointError:
        """Return the error for a tensor that cannot be quantised."""
        return CheckpointError(
            f"{self.checkpoint.sources[full].path}: tensor {full!r} holds NaN or infinity, which cannot be quantised;"
            " fetch the file again, or look at the model with quantize=none"
        )

    def _checked(self, name: str, shape: tuple[int, ...]) -> str:
        """Return the full name of a tensor that exists with this shape and a dtype that can be read."""
        full = self.prefix + name
        source = self.checkpoint.sources.get(full)
        if source is None:
            raise CheckpointError(
                f"tensor {full!r} of shape {list(shape)} is missing in {self.checkpoint.folder}"
                f" ({len(self.checkpoint.sources)} tensors); the checkpoint is incomplete or of another model type"
            )
        if source.shape != shape:
            raise CheckpointError(
                f"{source.path}: tensor {full!r} has shape {list(source.shape)}, config.json wants {list(shape)}"
            )
        if isinstance(source, PlainSource) and source.kind not in DTYPES:
            raise CheckpointError(
                f"{source.path}: tensor {full!r} has dtype {source.kind}; readable are {', '.join(DTYPES)}"
            )
        return full
