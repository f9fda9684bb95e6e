"""Encode and decode on CUDA devices: the twins of the codecs in kernels/codec.py, compiled by NVRTC through cupy."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ollampi.kernels.codec import Reference, most_numbers

# What follows is as in cuda/codec.cu.
_BLOCK_THREADS, _BLOCKS_AT_ONCE, _MOST_PARTS, _MOST_THREADS = 128, 8, 128, 1024
_TILE = 512  # numbers, of a warp
_WARP = 32
_NAMES = ("encode", "decode_sum", "recode", "decode_sum_norm")
_PARTS = np.dtype([("at", np.uint64, _MOST_PARTS)])
OPTIONS = ("--std=c++17", "--fmad=false", "--ftz=false", "--prec-div=true", "--prec-sqrt=true")
_FOLDER = Path(__file__).parent / "cuda"
_NUMBERS_OF_VECTOR = 4  # that a thread of the norm reads at once
_ALIGNMENT_BYTES = 16


def source() -> str:
    """Return the text of the kernels, which includes nothing."""
    text = (_FOLDER / "codec.cu").read_text()
    return re.sub(r'#include "(\S+)".*', lambda found: (_FOLDER / found[1]).read_text(), text)


def lacking() -> str | None:
    """Return why the kernels cannot be had in this process, with the remedy, or None where they can."""
    try:
        loaded_cupy()
    except ImportError as e:
        return f"cupy cannot be imported ({e}); install the extra `cuda` from the repository: pip install -e '.[cuda]'"
    return None


def loaded_cupy() -> Any:
    """Return cupy; raise ImportError where it cannot be had."""
    import cupy  # loads CUDA's libraries; a world without GPUs never gets here

    return cupy


@cache
def _kernels(level: int, index: int) -> dict[str, Any]:
    """Return the kernels of a level by name, loaded on the device of that index; raise what NVRTC or CUDA raises."""
    cupy = loaded_cupy()
    with cupy.cuda.Device(index):
        module = cupy.RawModule(code=source(), options=OPTIONS)
        module.compile()  # now, not with the first launch, which a graph may be recording
        return {name: module.get_function(f"{name}_{level}") for name in _NAMES}


class CudaCodec:
    """The codec of a level on a CUDA device. The bits are Reference's, but for the rounding of the norm's sums.

    All runs on torch's current stream of the device, without a copy or a wait, so that CUDA graphs can hold it; the
    kernels are compiled when the first codec of a level is made. Raise ImportError without cupy.
    """

    def __init__(self, level: int, device: torch.device) -> None:
        self.level = level
        self._reference = Reference(level)
        self._device = device
        self._index = torch.cuda.current_device() if device.index is None else device.index
        self._cuda = loaded_cupy().cuda
        self._kernels = _kernels(level, self._index)
        multiprocessors = torch.cuda.get_device_properties(self._index).multi_processor_count
        self._most_blocks = multiprocessors * _BLOCKS_AT_ONCE

    def encode(self, x: Tensor, codes: Tensor) -> None:
        """Write x [n] in fp32 into codes, uint8 [num_bytes(level, n)]."""
        self._run_tiles("encode", len(x), _pointer(x), np.int64(len(x)), _pointer(codes))

    def decode_sum(self, parts: Sequence[Tensor], out: Tensor) -> None:
        """Write the sum of the vectors that parts, uint8 [num_bytes(level, n)] each, hold into out [n] in fp32."""
        if len(parts) > _MOST_PARTS:
            self._reference.decode_sum(parts, out)
            return
        self._run_tiles("decode_sum", len(out), *_pointers(parts), np.int64(len(out)), _pointer(out))

    def recode(self, parts: Sequence[Tensor], codes: Tensor) -> None:
        """Write the sum of what the parts hold into codes, all uint8 [num_bytes(level, n)]; codes may be a part."""
        if len(parts) > _MOST_PARTS:
            self._reference.recode(parts, codes)
            return
        count = most_numbers(self.level, codes.numel())
        self._run_tiles("recode", count, *_pointers(parts), np.int64(count), _pointer(codes))

    def decode_sum_norm(
        self, parts: Sequence[Tensor], residual: Tensor, weight: Tensor, eps: float, normed: Tensor
    ) -> None:
        """Add the sum of what the parts hold to residual [T, D]; write the RMSNorm of that into normed [T, D].

        D that is no multiple of 4, and what does not begin at a multiple of 16 bytes, goes through torch.
        """
        tensors = (*parts, residual, weight, normed)
        width = residual.shape[1]
        aligned = all(tensor.data_ptr() % _ALIGNMENT_BYTES == 0 for tensor in tensors)
        if not aligned or width % _NUMBERS_OF_VECTOR or len(parts) > _MOST_PARTS:
            self._reference.decode_sum_norm(parts, residual, weight, eps, normed)
            return
        given = (_pointer(residual), _pointer(weight), np.int32(weight.dtype == torch.bfloat16), np.float32(eps))
        vectors = -(-width // (_WARP * _NUMBERS_OF_VECTOR)) * _WARP
        threads = min(_MOST_THREADS, vectors)
        arguments = (*_pointers(parts), *given, np.int64(width), _pointer(normed))
        self._run("decode_sum_norm", residual.shape[0], threads, arguments)

    def _run_tiles(self, name: str, count: int, *arguments: Any) -> None:
        """Start a kernel whose warps take tiles of vectors of `count` numbers in turns."""
        warps = -(-count // _TILE)
        blocks = min(self._most_blocks, -(-warps * _WARP // _BLOCK_THREADS))
        self._run(name, blocks, _BLOCK_THREADS, arguments)

    def _run(self, name: str, blocks: int, threads: int, arguments: tuple[Any, ...]) -> None:
        """Start a kernel on torch's current stream, unless it has nothing to do."""
        if not blocks:
            return
        stream = torch.cuda.current_stream(self._device)
        with self._cuda.Device(self._index), self._cuda.Stream.from_external(stream):
            self._kernels[name]((blocks,), (threads,), arguments)


def _pointer(x: Tensor) -> np.uint64:
    """Return where the elements of x [...] begin, as a kernel takes it."""
    return np.uint64(x.data_ptr())


def _pointers(parts: Sequence[Tensor]) -> tuple[Any, np.int32]:
    """Return where the parts [n] begin, at most as many as the kernels take, and how many these are."""
    places = np.zeros(1, _PARTS)
    places["at"][0, : len(parts)] = [part.data_ptr() for part in parts]
    return places, np.int32(len(parts))
