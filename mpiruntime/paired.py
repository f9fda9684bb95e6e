"""Bring projections to heads whose rope turns neighbours, numbers 2 i and 2 i + 1, into the order of ours."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from ollampi.mpiruntime.gguf_source import in_llama_cpp
from ollampi.mpiruntime.source import DTYPES, Read, Rows, Source, StoredPlain


@dataclass(frozen=True)
class Unpaired:
    """The tensor `inner` with the rows of each head of `head_dim` reordered: 0, 2, 4 and so on, then 1, 3, 5.

    Queries and keys are reordered alike, so that their products are the same; our rope turns i with i + d / 2.
    """

    inner: Source
    head_dim: int

    @property
    def name(self) -> str:
        """Return the tensor's name."""
        return self.inner.name

    @property
    def path(self) -> Path:
        """Return the file that holds it, or most of it."""
        return self.inner.path

    @property
    def kind(self) -> str:
        """Return how it is kept."""
        return self.inner.kind

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the tensor's shape."""
        return self.inner.shape

    @property
    def size_bytes(self) -> int:
        """Return what it takes of its files."""
        return self.inner.size_bytes

    @property
    def bits(self) -> int | None:
        """Return what `inner` says."""
        return self.inner.bits

    def rows(self, first: int, last: int, read: Read) -> Rows:
        """Return rows [first, last); all rows of the heads that they belong to are read."""
        begin, end = first // self.head_dim * self.head_dim, -(-last // self.head_dim) * self.head_dim
        order = in_llama_cpp(torch.arange(first, last), self.head_dim) - begin
        found = self.inner.rows(begin, min(end, self.shape[0]), read)
        return Rows(found.values[order], None if found.scales is None else found.scales[order])


def unpaired(sources: dict[str, Source], parts: tuple[str, ...], head_dim: int) -> dict[str, Source]:
    """Return the sources with the projections to heads, whose names have one of `parts` before the last, reordered."""

    def wanted(source: Source) -> bool:
        """Return whether a tensor is such a projection, of a type that can be read and whole heads."""
        known = not isinstance(source, StoredPlain) or source.kind in DTYPES
        return source.name.split(".")[-2:-1] in [[part] for part in parts] and known and not source.shape[0] % head_dim

    return {name: Unpaired(source, head_dim) if wanted(source) else source for name, source in sources.items()}
