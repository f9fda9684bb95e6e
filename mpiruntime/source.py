"""Say what the reading of weights needs to know of one tensor, wherever and however it is kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor

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
    """One tensor of a checkpoint under the name and in the shape that the decoder knows it by.

    kind: how it is kept, for people ("BF16", "Q4_K", "GPTQ"); size_bytes: what it takes of its files; bits: 8 or 4 where
    weights of so many bits hold its values exactly, None for others.
    """

    name: str
    path: Path
    kind: str
    shape: tuple[int, ...]
    size_bytes: int
    bits: int | None

    def rows(self, first: int, last: int, read: Read) -> Rows:
        """Return rows [first, last); a tensor of more than two dimensions counts as the matrix [-1, shape[-1]].

        Raise CheckpointError where the file does not hold what its header says.
        """
