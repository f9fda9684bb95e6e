"""Bring the tensors of a Hugging Face folder into the names, the order and the types that GGUF files have them in.

Matrices keep their type, all else becomes F32. What is changed in numbers is what llama.cpp's converter changes
(convert_hf_to_gguf.py): the order of rows for the architecture llama, and norms of Gemma, to which 1 is added.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ollampi.kernels.gguf_quants import READABLE, pack, unpack
from ollampi.mpiruntime.checkpoint_files import checkpoint_entries
from ollampi.mpiruntime.errors import CheckpointError
from ollampi.mpiruntime.families import BODIES
from ollampi.mpiruntime.gguf_header import GgufTensor
from ollampi.mpiruntime.gguf_names import gguf_name
from ollampi.mpiruntime.gguf_writer import NewTensor, blocks_of
from ollampi.mpiruntime.model_config import ModelConfig, is_idle
from ollampi.mpiruntime.safetensors_header import TensorEntry

N = TypeVar("N", bound=np.generic)

_PIECE_BYTES = 1 << 20
_HEADS = ("lm_head.", "language_model.lm_head.")


@dataclass(frozen=True)
class Converted:
    """One tensor of the file that is to be written; parts: those of the folder that it is made of, under each other.

    kind: its type; heads: of how many heads the rows are whose order changes, else 0; added: to its numbers.
    """

    name: str
    parts: tuple[TensorEntry, ...]
    kind: str
    heads: int
    added: float

    @property
    def shape(self) -> tuple[int, ...]:
        """Return its shape: experts first, where it is of several."""
        own = self.parts[0].shape
        return (len(self.parts), *own) if self.name.split(".")[-2].endswith("_exps") else own

    def described(self, path: Path) -> GgufTensor:
        """Return what a file would say of it, but for where it begins."""
        return GgufTensor(self.name, path, blocks_of(self.kind), self.shape, 0)

    def new(self, told: Callable[[int], None]) -> NewTensor:
        """Return the tensor for the writer; told: called with the bytes of the folder that each piece has taken."""
        return NewTensor(self.name, blocks_of(self.kind), self.shape, partial(_pieces, self, told))


def converted_tensors(folder: Path, config: ModelConfig, architecture: str) -> list[Converted]:
    """Return the tensors of a folder in the order of the file; raise CheckpointError where one has no place in it."""
    entries = {name: entry for name, entry in checkpoint_entries(folder).items() if not is_idle(config, name)}
    prefix = next((f"{body}." if body else "" for body in BODIES if _has_body(entries, body, config)), "model.")
    groups: dict[str, dict[int, TensorEntry]] = {}
    for name, entry in entries.items():
        ours = "lm_head." + name.rsplit(".", 1)[-1] if name.startswith(_HEADS) else f"model.{name.removeprefix(prefix)}"
        found = gguf_name(architecture, ours)
        if found is None or entry.dtype not in READABLE or not entry.shape or len(entry.shape) > 2:
            raise CheckpointError(
                f"{entry.path}: tensor {name!r} ({entry.dtype}, shape {list(entry.shape)}) cannot be in a GGUF file of"
                f" {architecture}; convert a checkpoint of plain matrices in F32, F16 or BF16"
            )
        groups.setdefault(found[0], {})[found[1] or 0] = entry
    return [_converted(name, parts, config, architecture) for name, parts in sorted(groups.items(), key=_place)]


def interleaved(rows: NDArray[N], num_heads: int) -> NDArray[N]:
    """Return rows [num_heads * d, ...] in llama.cpp's order, where i and i + d / 2 of a head are neighbours.

    Its rope turns number 2 i of a head with 2 i + 1, that of Hugging Face i with i + d / 2.
    """
    halves = rows.reshape(num_heads, 2, -1, *rows.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows.shape)


def _has_body(entries: dict[str, TensorEntry], body: str, config: ModelConfig) -> bool:
    return f"{body}.{config.names.tokens}.weight".removeprefix(".") in entries


def _place(group: tuple[str, object]) -> tuple[int, str]:
    """Return where a tensor stands: the token table, the layers, the norm and the head behind them."""
    first, number, *_ = group[0].split(".")
    return (int(number) if first == "blk" else (1 << 30 if first.startswith("output") else -1)), group[0]


def _converted(name: str, numbered: dict[int, TensorEntry], config: ModelConfig, architecture: str) -> Converted:
    """Return one tensor; raise CheckpointError where its experts do not fit together."""
    parts = tuple(numbered[number] for number in sorted(numbered))
    if sorted(numbered) != list(range(len(parts))) or len({(part.shape, part.dtype) for part in parts}) > 1:
        raise CheckpointError(
            f"{parts[0].path}: the {len(parts)} tensors of {name} are not those of experts 0 to {len(parts) - 1} in one"
            " shape and type; fetch the files again"
        )
    stem = name.split(".")[-2]
    plain = len(parts[0].shape) == 1 or stem == "ffn_gate_inp" or stem.endswith("norm")
    heads = {"attn_q": config.num_heads, "attn_k": config.num_kv_heads}.get(stem, 0) if architecture == "llama" else 0
    if heads and parts[0].shape[0] != heads * config.head_dim:
        raise CheckpointError(
            f"{parts[0].path}: tensor {parts[0].name!r} has {parts[0].shape[0]} rows; config.json says {heads} heads of"
            f" {config.head_dim}, fetch both again"
        )
    added = config.norm_offset if stem.endswith("norm") else 0.0
    return Converted(name, parts, "F32" if plain else parts[0].dtype, heads, added)


def _pieces(tensor: Converted, told: Callable[[int], None]) -> Iterator[bytes | memoryview]:
    """Yield the tensor's bytes, some rows at a time."""
    for part in tensor.parts:
        row_bytes = part.size_bytes // part.shape[0]
        per_head = part.shape[0] // tensor.heads if tensor.heads else 1
        step = max(1, _PIECE_BYTES // (row_bytes * per_head)) * per_head
        with part.path.open("rb") as file:
            file.seek(part.offset)
            for first in range(0, part.shape[0], step):
                count = min(step, part.shape[0] - first)
                data = file.read(count * row_bytes)
                if len(data) != count * row_bytes:
                    raise CheckpointError(f"{part.path} ends within tensor {part.name!r}; fetch it again")
                yield _changed(tensor, part.dtype, np.frombuffer(data, np.uint8).reshape(count, -1), count // per_head)
                told(len(data))


def _changed(tensor: Converted, dtype: str, raw: NDArray[np.uint8], num_heads: int) -> memoryview:
    """Return rows of bytes [R, bytes of a row] as they are to be written."""
    if tensor.heads:
        raw = interleaved(raw, num_heads)
    if tensor.kind != dtype or tensor.added:
        raw = pack(tensor.kind, unpack(dtype, raw) + np.float32(tensor.added))
    return raw.data


def plain_type(tensors: Sequence[Converted]) -> str:
    """Return the type of most numbers of matrices."""
    totals: dict[str, int] = {}
    for tensor in tensors:
        if len(tensor.shape) > 1:
            totals[tensor.kind] = totals.get(tensor.kind, 0) + sum(part.num_elements for part in tensor.parts)
    return max(totals, key=totals.__getitem__, default="F32")
