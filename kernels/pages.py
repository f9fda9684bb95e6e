"""Memory for large arrays, in huge pages where the kernel has them."""

from __future__ import annotations

import ctypes
import math
import mmap
from contextlib import suppress

import torch
from torch import Tensor

PAGE = 4096
_HUGE = 2 << 20  # on x86-64
_DROPPED_BYTES = 16 << 20  # at a time: what else maps memory waits meanwhile


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return a tensor [*shape] that nothing was written to; its memory goes back to the kernel with it.

    To hand out and clear pages of 4 KiB takes four times as long as huge ones, and longer than to copy weights there.
    """
    count = math.prod(shape)
    size = count * dtype.itemsize
    if size < _HUGE:
        return torch.empty(shape, dtype=dtype)
    memory = mmap.mmap(-1, size + _HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    start = -torch.frombuffer(memory, dtype=torch.uint8).data_ptr() % _HUGE
    with suppress(OSError):  # a kernel without huge pages
        memory.madvise(mmap.MADV_HUGEPAGE, start, size - size % _HUGE)  # of the rest, only what is needed
    return torch.frombuffer(memory, dtype=dtype, count=count, offset=start).view(shape)


def drop(tensor: Tensor) -> None:
    """Give the memory of a tensor on the CPU that nobody reads any more back to the kernel: its whole pages.

    To free gigabytes at once would hold up all threads: Python frees memory while no other thread can run.
    """
    madvise = getattr(ctypes.CDLL(None), "madvise", None)
    if madvise is None or not tensor.is_cpu or tensor.nbytes < _HUGE or not tensor.is_contiguous():
        return
    start = -(-tensor.data_ptr() // PAGE) * PAGE
    for at in range(start, (tensor.data_ptr() + tensor.nbytes) // PAGE * PAGE, _DROPPED_BYTES):
        end = min(at + _DROPPED_BYTES, (tensor.data_ptr() + tensor.nbytes) // PAGE * PAGE)
        madvise(ctypes.c_void_p(at), ctypes.c_size_t(end - at), mmap.MADV_DONTNEED)


def aligned(size: int) -> Tensor:
    """Return bytes [size] that begin with a page, as a device wants them to read into."""
    memory = empty((size + PAGE,), torch.uint8)
    start = -memory.data_ptr() % PAGE
    return memory[start : start + size]
