"""Say what the reading of weights needs to know of one tensor, wherever and however it is kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ollampi.mpiruntime.safetensors_header import ITEM_BYTES, TensorEntry

Read = Callable[[Path, int, int], Tensor]
"""Returns bytes [count] of a file from an offset on, as uint8; raises CheckpointError where they cannot be read."""


@dataclass(frozen=True)
class Rows:
    """Some rows of a tensor.

    values: [R, width] of a matrix or [R] of a vector, in a floating type. scales: float16 [R, width / 32] where every
    value is a whole number, of as many bits as the source says, times the scale of its group of 32; else None.
    """

    values: Tensor
    scales: Tensor | None = None


class Source(Protocol):
    """One tensor of a checkpoint under the name and in the shape that the decoder knows it by."""

    @property
    def name(self) -> str:
        """Return the tensor's name."""

    @property
    def path(self) -> Path:
        """Return the file that holds it, or most of it."""

    @property
    def kind(self) -> str:
        """Return how it is kept, for people: "BF16", "Q4_K", "GPTQ"."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the tensor's shape."""

    @property
    def size_bytes(self) -> int:
        """Return what it takes of its files."""

    @property
    def bits(self) -> int | None:
        """Return 8 or 4 where weights of so many bits hold its values exactly, None for others."""

    def rows(self, first: int, last: int, read: Read) -> Rows:
        """Return rows [first, last); a tensor of more than two dimensions counts as the matrix [-1, shape[-1]].

        Raise CheckpointError where the file does not hold what its header says.
        """


DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}


@dataclass(frozen=True)
class StoredPlain:
    """A tensor of plain numbers in a safetensors file; rows are in the dtype of the file."""

    entry: TensorEntry
    bits: None = None

    @property
    def name(self) -> str:
        """Return the tensor's name."""
        return self.entry.name

    @property
    def path(self) -> Path:
        """Return the file."""
        return self.entry.path

    @property
    def kind(self) -> str:
        """Return the dtype as the file calls it."""
        return self.entry.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the tensor's shape."""
        return self.entry.shape

    @property
    def size_bytes(self) -> int:
        """Return the tensor's bytes."""
        return self.entry.size_bytes

    def rows(self, first: int, last: int, read: Read) -> Rows:
        """Return rows [first, last)."""
        width = self.shape[-1:] if len(self.shape) > 1 else ()
        size = ITEM_BYTES[self.kind] * (width[0] if width else 1)
        raw = read(self.path, self.entry.offset + first * size, (last - first) * size)
        return Rows(raw.view(DTYPES[self.kind]).view(last - first, *width))
