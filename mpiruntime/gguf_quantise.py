"""Make a GGUF file with fewer bits of one that holds plain numbers, or Q8_0."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from ollampi.kernels.gguf_quants import LARGEST, READABLE, pack, unpack
from ollampi.mpiruntime.cores import cores_per_task
from ollampi.mpiruntime.errors import CheckpointError, ModelError
from ollampi.mpiruntime.gguf_header import GgufFile, GgufTensor, read_entries, read_gguf
from ollampi.mpiruntime.gguf_mixture import LEVELS, new_type
from ollampi.mpiruntime.gguf_types import Blocks
from ollampi.mpiruntime.gguf_writer import NewTensor, blocks_of, entry, write_gguf

Progress = Callable[[int, int], None]

_PIECE_VALUES = 1 << 17  # of rows that are quantised at once: what is made of them stays in a core's cache
_COPIED_BYTES = 1 << 20
_QUANTISATION_VERSION = 2  # of ggml, which files with quantised tensors name
_LEFT_OUT = ("general.alignment", "split.no", "split.count", "split.tensors.count")


def requantise(source: Path, target: Path, level: str, progress: Progress) -> None:
    """Write `target`, the GGUF model `source` with its matrices quantised: q8_0, q4_K_M, q4_K_S, or f16, bf16, f32.

    progress: called in this thread with the bytes of the source's tensors that are done and with all of them. Only some
    pieces of a tensor are held at a time. Raise ModelError for a level that is not known and a source that is damaged
    or already has fewer bits than wanted; OSError where `target` cannot be written. Then `target` is removed.
    """
    name = level.lower()
    if name not in LEVELS:
        raise ModelError(
            f"unsupported quantization type {level:.40} - supported types are F32, F16, Q4_K_S, Q4_K_M, Q8_0, BF16"
        )
    file = read_gguf(source, tokens=False)
    if target.exists() and any(target.samefile(tensor.path) for tensor in file.tensors.values()):
        raise ModelError(f"{target} is what would be quantised; write to another file")
    kinds = {tensor.name: new_type(file, tensor, name) for tensor in file.tensors.values()}
    for tensor in file.tensors.values():
        _check_source(tensor, kinds[tensor.name], level)
    entries = {key: value for key, value in read_entries(source).items() if key not in _LEFT_OUT}
    entries["general.file_type"] = entry("general.file_type", LEVELS[name][0])
    entries["general.quantization_version"] = entry("general.quantization_version", _QUANTISATION_VERSION)
    with _Workers() as workers:
        told = _Told(file, progress)
        tensors = [_new(tensor, kinds[tensor.name], workers, told) for tensor in file.tensors.values()]
        write_gguf(target, entries, tensors)


class _Workers(ThreadPoolExecutor):
    """As many threads as this process may keep cores busy, and how many pieces wait for them at most."""

    def __init__(self) -> None:
        count = cores_per_task(os.environ, len(os.sched_getaffinity(0)))
        super().__init__(count, "quantise")
        self.most_waiting = 2 * count


class _Told:
    """Tells how many bytes of a file's tensors are done."""

    def __init__(self, file: GgufFile, progress: Progress) -> None:
        self._progress = progress
        self._done, self._all = 0, sum(tensor.size_bytes for tensor in file.tensors.values())

    def more(self, count: int) -> None:
        """Tell that `count` bytes more are done."""
        self._done += count
        self._progress(self._done, self._all)


def _check_source(tensor: GgufTensor, kind: str, level: str) -> None:
    """Raise ModelError unless a tensor can be made the type, which keeps no more bits than it has."""
    held = tensor.blocks
    if held.name == kind:
        return
    if held.name not in READABLE or _bits(held) < _bits(blocks_of(kind)):
        raise ModelError(
            f"quantization is only supported for F16 and F32 models: {tensor.path.name} has {tensor.name} in"
            f" {held.name}, which cannot become {kind} for {level}; take the model in F32, F16 or"
            " BF16, or for fewer bits in Q8_0"
        )


def _bits(blocks: Blocks) -> float:
    return blocks.size_bytes * 8 / blocks.values


def _new(tensor: GgufTensor, kind: str, workers: _Workers, told: _Told) -> NewTensor:
    """Return the tensor as it is to be written."""
    if tensor.blocks.name == kind:
        return NewTensor(tensor.name, tensor.blocks, tensor.shape, partial(_copied, tensor, told))
    return NewTensor(tensor.name, blocks_of(kind), tensor.shape, partial(_packed, tensor, kind, workers, told))


def _copied(tensor: GgufTensor, told: _Told) -> Iterator[bytes]:
    """Yield a tensor's bytes as they are."""
    with tensor.path.open("rb") as file:
        file.seek(tensor.offset)
        for begin in range(0, tensor.size_bytes, _COPIED_BYTES):
            yield _read(file, tensor, min(_COPIED_BYTES, tensor.size_bytes - begin))
            told.more(min(_COPIED_BYTES, tensor.size_bytes - begin))


def _packed(tensor: GgufTensor, kind: str, workers: _Workers, told: _Told) -> Iterator[memoryview]:
    """Yield a tensor's rows in another type, a few at a time; while this thread reads and writes, others quantise."""
    row_bytes = tensor.blocks.row_bytes(tensor.shape[-1])
    step = max(1, _PIECE_VALUES // tensor.shape[-1]) * row_bytes
    waiting: deque[tuple[int, Future[NDArray[np.uint8]]]] = deque()
    with tensor.path.open("rb") as file:
        file.seek(tensor.offset)
        for begin in range(0, tensor.size_bytes, step):
            raw = _read(file, tensor, min(step, tensor.size_bytes - begin))
            waiting.append((len(raw), workers.submit(_quantised, tensor, kind, raw, row_bytes)))
            if len(waiting) > workers.most_waiting:
                size, oldest = waiting.popleft()
                yield oldest.result().data
                told.more(size)
        for size, piece in waiting:
            yield piece.result().data
            told.more(size)


def _quantised(tensor: GgufTensor, kind: str, raw: bytes, row_bytes: int) -> NDArray[np.uint8]:
    """Return the bytes of some rows in another type; raise CheckpointError for numbers that it cannot hold."""
    rows = unpack(tensor.blocks.name, np.frombuffer(raw, np.uint8).reshape(-1, row_bytes))
    low, high = float(rows.min()), float(rows.max())
    most = LARGEST if kind not in ("F32", "BF16") else 3.38e38
    if not -most <= low <= high <= most:
        raise CheckpointError(
            f"{tensor.path.name}: tensor {tensor.name!r} has numbers from {low:g} to {high:g}; {kind} holds finite ones"
            f" up to {most:g}, take another file of the model"
        )
    return pack(kind, rows)


def _read(file: BinaryIO, tensor: GgufTensor, count: int) -> bytes:
    data = file.read(count)
    if len(data) != count:
        raise CheckpointError(f"{tensor.path.name} ends within tensor {tensor.name!r}; fetch it again")
    return data
