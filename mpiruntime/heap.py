"""Tell glibc's malloc what to do with freed memory; where the C library is another one, nothing happens."""

from __future__ import annotations

import ctypes
from functools import cache

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_LARGEST_BUFFER = 32 << 20  # the most that glibc takes for the second
_KEPT = 128 << 20


@cache
def _library() -> ctypes.CDLL:
    """Return what this process has loaded, opened once: each CDLL is a cycle of objects that waits for a collection."""
    return ctypes.CDLL(None)


def keep_buffers() -> None:
    """Keep the buffers that a step frees for the next one, up to 128 MiB.

    Else malloc may hand them back after every layer, and the kernel clears their pages anew: 65,000 page faults for
    a prompt of 512 tokens, for which the other ranks wait too.
    """
    mallopt = getattr(_library(), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGEST_BUFFER)
        mallopt(_TRIM_THRESHOLD, _KEPT)


def return_buffers() -> None:
    """Give every buffer of 1 MiB or more back to the kernel as soon as it is freed.

    Else glibc keeps those of one request of 30 MB for the next one, which may never come, in every thread's arena.
    """
    mallopt = getattr(_library(), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, 1 << 20)
        mallopt(_TRIM_THRESHOLD, 1 << 20)


def give_back() -> None:
    """Give all pages of freed memory back to the kernel, as when a model has left."""
    malloc_trim = getattr(_library(), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(ctypes.c_size_t(0))
