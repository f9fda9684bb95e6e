"""Read tensors as a safetensors file keeps them, and keep those that were read last."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ollampi.mpiruntime.safetensors_header import TensorEntry
from ollampi.mpiruntime.source import DTYPES, Read

_DTYPES = {**DTYPES, "F8_E4M3": torch.float8_e4m3fn, "I32": torch.int32}


def whole(entry: TensorEntry, read: Read) -> Tensor:
    """Return a tensor [*entry.shape] as it is in the file."""
    return read(entry.path, entry.offset, entry.size_bytes).view(_DTYPES[entry.dtype]).view(entry.shape)


def some_rows(entry: TensorEntry, first: int, last: int, read: Read) -> Tensor:
    """Return rows [first, last) of a tensor of at least one dimension, [last - first, ...]."""
    row_bytes = entry.size_bytes // max(1, entry.shape[0])
    raw = read(entry.path, entry.offset + first * row_bytes, (last - first) * row_bytes)
    return raw.view(_DTYPES[entry.dtype]).view(last - first, *entry.shape[1:])


class Held:
    """The tensors of one source at a time: those whose rows lie all over the file are read once and not per piece."""

    def __init__(self) -> None:
        self._name: str | None = None
        self._tensors: tuple[Tensor, ...] = ()

    def tensors(self, name: str, make: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """Return what is held under a name; else what `make` makes, in place of all that was held before."""
        if name != self._name:
            self._name, self._tensors = None, ()  # freed before the next ones are read
            self._tensors = make()
            self._name = name
        return self._tensors
