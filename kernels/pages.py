"""Memory for large arrays, in huge pages where the kernel has them."""

from __future__ import annotations

import math
import mmap
from contextlib import suppress

import torch
from torch import Tensor

_PAGE = 2 << 20  # a huge one, on x86-64


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return a tensor [*shape] that nothing was written to; its memory goes back to the kernel with it.

    To hand out and clear pages of 4 KiB takes four times as long as huge ones, and longer than to copy weights there.
    """
    count = math.prod(shape)
    size = count * dtype.itemsize
    if size < _PAGE:
        return torch.empty(shape, dtype=dtype)
    memory = mmap.mmap(-1, size + _PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    start = -torch.frombuffer(memory, dtype=torch.uint8).data_ptr() % _PAGE
    with suppress(OSError):  # a kernel without huge pages
        memory.madvise(mmap.MADV_HUGEPAGE, start, size - size % _PAGE)  # of the rest, only what is needed
    return torch.frombuffer(memory, dtype=dtype, count=count, offset=start).view(shape)
