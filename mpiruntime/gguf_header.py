"""Read and check the header of a GGUF file, or of all parts of a split one, without reading its tensors.

The format, versions 2 and 3: "GGUF", the version, the numbers of tensors and of keys, the keys with their values, name,
shape, type and offset of each tensor, padding, the tensors' bytes.
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import re
import struct
from dataclasses import dataclass
from pathlib import Path

from ollampi.mpiruntime.errors import CheckpointError
from ollampi.mpiruntime.gguf_fields import MAX_KEY_BYTES, HeaderFields, Value
from ollampi.mpiruntime.gguf_types import BLOCKS, OTHERS, Blocks
from ollampi.mpiruntime.safetensors_header import LFS_POINTER

MAGIC = b"GGUF"
MAX_TENSORS = 1 << 16
MAX_KEYS = 10_000
_VERSIONS = (2, 3)
_MAX_DIMENSIONS = 4
_MAX_NAME_BYTES = 256
_MAX_ALIGNMENT = 1 << 16
_KEY_BYTES = 8 + 1 + 4 + 1  # the least that a key takes: length, name, type, value
_TENSOR_BYTES = 8 + 1 + 4 + 8 + 4 + 8
_MOST_PARTS = 10_000
_PART_NAME = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")


@dataclass(frozen=True)
class GgufTensor:
    """Where one tensor lies: `offset` counts from the start of the file; shape as torch has it, rows first."""

    name: str
    path: Path
    blocks: Blocks
    shape: tuple[int, ...]
    offset: int

    @property
    def size_bytes(self) -> int:
        """Return the tensor's bytes."""
        return math.prod(self.shape[:-1]) * self.blocks.row_bytes(self.shape[-1])


@dataclass(frozen=True)
class GgufFile:
    """What a GGUF file says: values by key, tensors by name."""

    path: Path
    metadata: dict[str, Value]
    tensors: dict[str, GgufTensor]


def is_gguf(path: Path) -> bool:
    """Return whether a regular file begins as GGUF files do."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(4) == MAGIC
    except OSError:
        return False


def read_gguf(path: Path, tokens: bool = True) -> GgufFile:
    """Return the header of a GGUF file; of one that is split, given its first part, those of all parts.

    Without `tokens` the arrays of the tokenizer are checked and left out. Raise CheckpointError where a file is
    damaged, lies about itself or has tensors of a type that is not read.
    """
    first = _read_part(path, tokens)
    count = first.metadata.get("split.count", 1)
    if count == 1 or count == 0:
        return first
    tensors = dict(first.tensors)
    for number, part in enumerate(_other_parts(first, count), 2):
        read = _read_part(part, tokens)
        if (read.metadata.get("split.no"), read.metadata.get("split.count")) != (number - 1, count):
            raise CheckpointError(f"{part} is not part {number} of {count} by its split.no and split.count")
        for name, tensor in read.tensors.items():
            if name in tensors:
                raise CheckpointError(f"tensor {name!r} is in {tensors[name].path} and in {part.name}")
            tensors[name] = tensor
    claimed = first.metadata.get("split.tensors.count", len(tensors))
    if claimed != len(tensors):
        raise CheckpointError(f"{path}: split.tensors.count is {claimed!r:.40}, the parts have {len(tensors)} tensors")
    return GgufFile(path, first.metadata, tensors)


def read_entries(path: Path) -> dict[str, bytes]:
    """Return each key of one file with its value as they stand there; of a file that read_gguf has read before."""
    try:
        with path.open("rb", buffering=0) as file:
            fields = HeaderFields(path, file, path.stat().st_size)
            _check_version(fields)
            fields.u64()
            entries: dict[str, bytes] = {}
            for _ in range(fields.count(_KEY_BYTES, MAX_KEYS)):
                begin = fields.at
                key = fields.text(MAX_KEY_BYTES)
                fields.skip(fields.u32())
                entries[key] = fields.since(begin)
            return entries
    except OSError as e:
        raise CheckpointError(f"{path} cannot be read: {e.strerror}") from e


def gguf_parts(path: Path) -> list[Path]:
    """Return the files of a model whose first is `path`, as their names tell, those that are missing too."""
    match = _PART_NAME.fullmatch(path.name)
    if match is None or not 1 < int(match[3]) < _MOST_PARTS:
        return [path]
    return [path.with_name(f"{match[1]}-{i:05d}-of-{match[3]}.gguf") for i in range(1, int(match[3]) + 1)]


def _other_parts(first: GgufFile, count: Value) -> list[Path]:
    """Return the paths of all parts but the first; raise CheckpointError where they cannot be known."""
    path, number = first.path, first.metadata.get("split.no")
    merge = "or merge the parts with llama.cpp's `gguf-split --merge`"
    if type(count) is not int or not 1 < count < _MOST_PARTS:
        raise CheckpointError(f"{path}: split.count is {count!r:.40}; it must be a number of parts below {_MOST_PARTS}")
    match = _PART_NAME.fullmatch(path.name)
    if match is None or int(match[3]) != count:
        raise CheckpointError(
            f"{path} is part of a model in {count} files; call it NAME-00001-of-{count:05d}.gguf as the others, {merge}"
        )
    if number != 0 or int(match[2]) != 1:
        name = f"{match[1]}-00001-of-{count:05d}.gguf"
        raise CheckpointError(f"{path} is not the first of {count} parts; give {name}, {merge}")
    parts = gguf_parts(path)[1:]
    missing = next((part for part in parts if not part.is_file()), None)
    if missing is not None:
        raise CheckpointError(f"{missing} is missing; fetch all {count} parts into one folder")
    return parts


def _read_part(path: Path, tokens: bool) -> GgufFile:
    """Return the header of one file."""
    try:
        if not path.is_file():  # opening a pipe would block for ever
            raise CheckpointError(f"{path} is no regular file; fetch it again")
        file_bytes = path.stat().st_size
        with path.open("rb", buffering=0) as file:
            return _parse(HeaderFields(path, file, file_bytes), file_bytes, tokens)
    except OSError as e:
        raise CheckpointError(f"{path} cannot be read: {e.strerror}") from e


def _parse(fields: HeaderFields, file_bytes: int, tokens: bool) -> GgufFile:
    """Return what the header says, checked against the size of the file."""
    _check_version(fields)
    fields.place = "the number of tensors"
    num_tensors = fields.count(_TENSOR_BYTES, MAX_TENSORS)
    fields.place = "the number of keys"
    metadata = _metadata(fields, fields.count(_KEY_BYTES, MAX_KEYS), tokens)
    tensors = [_tensor(fields, number) for number in range(num_tensors)]
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or not 0 < alignment <= _MAX_ALIGNMENT or alignment & (alignment - 1):
        raise CheckpointError(
            f"{fields.path}: general.alignment is {alignment!r:.40};"
            f" it must be a power of two up to {_MAX_ALIGNMENT}, fetch the file again"
        )
    start = -(-fields.at // alignment) * alignment
    return GgufFile(fields.path, metadata, _placed(fields.path, tensors, start, alignment, file_bytes))


def _check_version(fields: HeaderFields) -> None:
    """Raise CheckpointError unless the file is GGUF of a version that is read."""
    fields.place = "the beginning"
    magic, version = struct.pack("<I", fields.u32()), fields.u32()
    if LFS_POINTER.startswith(magic):
        raise CheckpointError(f"{fields.path} is a pointer of Git LFS, not the file; run `git lfs pull` in its folder")
    if magic != MAGIC:
        raise CheckpointError(f"{fields.path} begins with {magic!r}, not {MAGIC!r}; it is no GGUF file")
    swapped = int.from_bytes(version.to_bytes(4, "big"), "little")
    if swapped in _VERSIONS:
        raise CheckpointError(f"{fields.path} is big endian; take a file for little-endian machines")
    if version not in _VERSIONS:
        raise CheckpointError(
            f"{fields.path} is GGUF of version {version}; versions 2 and 3 are read, convert the model anew"
        )


def _metadata(fields: HeaderFields, count: int, tokens: bool) -> dict[str, Value]:
    """Return the values by key."""
    metadata: dict[str, Value] = {}
    seen: set[str] = set()
    for number in range(count):
        fields.place = f"key {number + 1} of {count}"
        key = fields.text(MAX_KEY_BYTES)
        fields.place = f"{key!r:.80}"
        if key in seen:  # readers disagree on which one counts
            raise fields.wrong("comes twice")
        seen.add(key)
        kind = fields.u32()
        if tokens or kind != 9 or not key.startswith("tokenizer."):
            metadata[key] = fields.value(kind)
        else:
            fields.skip(kind)
    return metadata


def _tensor(fields: HeaderFields, number: int) -> GgufTensor:
    """Return what the header says of one tensor; its offset counts from the first tensor's."""
    fields.place = f"tensor {number + 1}"
    name = fields.text(_MAX_NAME_BYTES)
    fields.place = f"tensor {name!r}"
    dimensions = fields.u32()
    if not 1 <= dimensions <= _MAX_DIMENSIONS:
        raise fields.wrong(f"has {dimensions} dimensions, not 1 to {_MAX_DIMENSIONS}")
    shape = tuple(fields.u64() for _ in range(dimensions))
    if math.prod(shape) == 0 or math.prod(shape) >= 2**48:
        raise fields.wrong(f"has the impossible shape {list(shape)}")
    kind, offset = fields.u32(), fields.u64()
    blocks = BLOCKS.get(kind)
    if blocks is None:
        known = ", ".join(each.name for each in BLOCKS.values())
        raise CheckpointError(
            f"{fields.path}: {fields.place} has the type {OTHERS.get(kind, kind)}, which is not supported;"
            f" known are: {known}"
        )
    if shape[0] % blocks.values:
        raise fields.wrong(f"has rows of {shape[0]} numbers, {blocks.name} keeps {blocks.values} in a block")
    return GgufTensor(name, fields.path, blocks, shape[::-1], offset)


def _placed(
    path: Path, tensors: list[GgufTensor], start: int, alignment: int, file_bytes: int
) -> dict[str, GgufTensor]:
    """Return the tensors with offsets from the file's start; raise CheckpointError unless each has bytes of its own."""
    end, placed = start, {}
    for tensor in sorted(tensors, key=lambda each: each.offset):
        begin = start + tensor.offset
        if tensor.offset % alignment or begin < end:
            raise CheckpointError(
                f"{path}: tensor {tensor.name!r} begins at byte {begin}; it must begin at a multiple of {alignment}"
                f" behind byte {end}, where the tensor before it ends; fetch the file again"
            )
        end = begin + tensor.size_bytes
        if end > file_bytes:
            raise CheckpointError(
                f"{path}: tensor {tensor.name!r} ends at byte {end}, the file has {file_bytes};"
                " it is truncated or damaged, fetch it again"
            )
        if tensor.name in placed:
            raise CheckpointError(f"{path}: tensor {tensor.name!r} comes twice; fetch the file again")
        placed[tensor.name] = GgufTensor(tensor.name, path, tensor.blocks, tensor.shape, begin)
    return {tensor.name: placed[tensor.name] for tensor in tensors}
