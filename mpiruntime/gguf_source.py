"""The tensors of a GGUF file under the names and in the order of rows that Hugging Face checkpoints have them in."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ollampi.mpiruntime.errors import CheckpointError
from ollampi.mpiruntime.gguf_blocks import BITS, PLAIN, rows_of
from ollampi.mpiruntime.gguf_config import gguf_heads
from ollampi.mpiruntime.gguf_header import GgufFile, GgufTensor, read_gguf
from ollampi.mpiruntime.gguf_names import checkpoint_name
from ollampi.mpiruntime.gguf_types import Blocks
from ollampi.mpiruntime.source import Read, Rows, Source

_MOST_EXPERTS = 4096


@dataclass(frozen=True)
class GgufSource:
    """One tensor, or that of one expert; it begins at byte `offset` of its file.

    heads: of how many heads the rows are that lie in the order of llama.cpp's rope; 0 where they are in ours.
    """

    name: str
    path: Path
    blocks: Blocks
    shape: tuple[int, ...]
    offset: int
    heads: int = 0

    @property
    def kind(self) -> str:
        """Return the type as ggml calls it."""
        return self.blocks.name

    @property
    def bits(self) -> int | None:
        """Return 8 for Q8_0 and 4 for Q4_0, else None."""
        return BITS.get(self.kind)

    @property
    def row_bytes(self) -> int:
        """Return the bytes of a row, or of a number of a vector."""
        return self.blocks.row_bytes(self.shape[-1] if len(self.shape) > 1 else 1)

    @property
    def size_bytes(self) -> int:
        """Return the tensor's bytes."""
        rows = math.prod(self.shape[:-1]) if len(self.shape) > 1 else self.shape[0]
        return rows * self.row_bytes

    def rows(self, first: int, last: int, read: Read) -> Rows:
        """Return rows [first, last); with `heads`, all rows of the heads that they belong to are read."""
        size = self.row_bytes
        if self.heads:
            each = self.shape[0] // self.heads
            begin, end = first // each * each, -(-last // each) * each
            order = in_llama_cpp(torch.arange(first, last), each) - begin
            raw = read(self.path, self.offset + begin * size, (end - begin) * size).view(-1, size)[order]
        else:
            raw = read(self.path, self.offset + first * size, (last - first) * size).view(-1, size)
        rows = rows_of(self.kind, raw)
        return rows if len(self.shape) > 1 else Rows(rows.values.flatten())


def in_llama_cpp(rows: Tensor, head_dim: int) -> Tensor:
    """Return where rows [R] of a projection to heads lie in the order of llama.cpp, as [R].

    Our rope turns number i of a head with i + d / 2, llama.cpp's 2 i with 2 i + 1.
    """
    head, within = rows // head_dim, rows % head_dim
    return head * head_dim + within % (head_dim // 2) * 2 + within // (head_dim // 2)


def open_gguf(path: Path) -> dict[str, Source]:
    """Return the tensors of a GGUF file by name; raise ModelError where it is damaged or not supported."""
    return gguf_sources(read_gguf(path, tokens=False))


def gguf_sources(file: GgufFile) -> dict[str, Source]:
    """Return the tensors that a header describes, by name; raise ModelError where two would have the same."""
    sources: dict[str, Source] = {}
    architecture, heads = str(file.metadata.get("general.architecture")), gguf_heads(file)
    for tensor in file.tensors.values():
        name = checkpoint_name(architecture, tensor.name)
        for source in () if name is None else _sources(name, tensor, heads):
            if source.name in sources:
                raise CheckpointError(
                    f"{file.path}: tensor {tensor.name!r} and another one both are {source.name}; fetch the file again"
                )
            sources[source.name] = source
    return sources


def _sources(name: str, tensor: GgufTensor, heads: tuple[int, int]) -> Iterator[GgufSource]:
    """Yield what a tensor of the file holds: one of ours, or one for each expert."""
    if len(tensor.shape) == 1 and tensor.blocks.name not in PLAIN:
        raise CheckpointError(
            f"{tensor.path}: vector {tensor.name!r} has the type {tensor.blocks.name}; vectors must be F32, F16 or BF16"
        )
    whole = GgufSource(name, tensor.path, tensor.blocks, tensor.shape, tensor.offset, _heads(name, tensor, heads))
    if "{}" not in name or name == tensor.name:  # a name that is not known may hold anything
        yield whole
        return
    if len(tensor.shape) != 3 or tensor.shape[0] > _MOST_EXPERTS:
        raise CheckpointError(
            f"{tensor.path}: tensor {tensor.name!r} has shape {list(tensor.shape)};"
            f" it must be [experts, rows, width] of at most {_MOST_EXPERTS} experts"
        )
    size = tensor.size_bytes // tensor.shape[0]
    for number in range(tensor.shape[0]):
        offset = tensor.offset + number * size
        yield GgufSource(name.format(number), tensor.path, tensor.blocks, tensor.shape[1:], offset)


def _heads(name: str, tensor: GgufTensor, heads: tuple[int, int]) -> int:
    """Return of how many heads the rows are whose order the conversion has changed, else 0."""
    part = name.rsplit(".", 2)[-2] if "." in name else ""
    count = {"q_proj": heads[0], "k_proj": heads[1]}.get(part, 0)
    if count and tensor.shape[0] % (2 * count):
        raise CheckpointError(
            f"{tensor.path}: tensor {tensor.name!r} has {tensor.shape[0]} rows; they must be {count} heads of an even"
            " number of rows, fetch the file again"
        )
    return count
