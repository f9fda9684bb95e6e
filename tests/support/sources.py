"""Read sources without a checkpoint around them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ollampi.mpiruntime.safetensors_header import read_header
from ollampi.mpiruntime.source import Source, StoredPlain


class Reader:
    """Reads bytes of files and counts them."""

    def __init__(self) -> None:
        self.bytes_read = 0

    def __call__(self, path: Path, offset: int, count: int) -> Tensor:
        with path.open("rb") as file:
            file.seek(offset)
            raw = bytearray(file.read(count))
        assert len(raw) == count
        self.bytes_read += count
        return torch.frombuffer(raw, dtype=torch.uint8) if raw else torch.empty(0, dtype=torch.uint8)


def plain_sources(folder: Path) -> dict[str, Source]:
    """Return the tensors of model.safetensors as sources."""
    return {name: StoredPlain(entry) for name, entry in read_header(folder / "model.safetensors").items()}


def all_rows(source: Source, piece: int | None = None) -> Tensor:
    """Return the whole tensor, read a few rows at a time."""
    reader, step = Reader(), piece or max(1, source.shape[0])
    firsts = range(0, source.shape[0], step)
    return torch.cat([source.rows(i, min(i + step, source.shape[0]), reader).values for i in firsts])
