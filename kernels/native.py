"""Load the native kernels where the package was built with a compiler; elsewhere their NumPy or torch twins serve."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

INTERFACE = 12  # what kernels/cpu/native.c says: a library of another one was built from other sources
_FOLDER = Path(__file__).parent / "cpu"
_POINTER, _NUMBER = ctypes.c_void_p, ctypes.c_int64
_ARGUMENTS: dict[str, list[type]] = {
    "draw": [_POINTER, _NUMBER, _NUMBER, *[_POINTER] * 3],
    "top_tokens": [_POINTER, _NUMBER, _NUMBER, _NUMBER, *[_POINTER] * 5],
    "quantise_weights": [_POINTER, *[_NUMBER] * 5, _POINTER, _NUMBER, _POINTER, _POINTER],
    "set_codes": [_POINTER, _POINTER, *[_NUMBER] * 4, _POINTER, _POINTER],
    "quantised": [_NUMBER, _NUMBER, _POINTER, _POINTER, *[_NUMBER] * 3, _POINTER, _NUMBER, _NUMBER, _POINTER],
    "take_rows": [_NUMBER, _POINTER, _POINTER, _NUMBER, _NUMBER, _POINTER, _NUMBER, _POINTER],
    "dense": [_NUMBER, _NUMBER, _POINTER, _NUMBER, _NUMBER, _POINTER, _NUMBER, _POINTER],
    "rms_norm": [_NUMBER, _POINTER, _POINTER, _NUMBER, ctypes.c_float, _NUMBER, _NUMBER, _POINTER],
    "gate_multiply": [_NUMBER, _NUMBER, _POINTER, _NUMBER, _NUMBER, _NUMBER, _POINTER],
    "shared_room_bytes": [],
    "shared_open": [_POINTER, _POINTER, *[_NUMBER] * 6],
    "shared_sum": [_POINTER, _POINTER, _POINTER, _NUMBER, _NUMBER, _NUMBER],
    "shared_share": [_POINTER, _POINTER, _NUMBER, _NUMBER],
    "shared_gather": [_POINTER, _POINTER, _NUMBER, _NUMBER, _POINTER, _NUMBER, _NUMBER],
    "rows_at_once": [_NUMBER],
    "mix": [_NUMBER, _POINTER, _NUMBER, _POINTER, _NUMBER, _POINTER],
    "encode": [_NUMBER, _NUMBER, _POINTER, _NUMBER, _POINTER],
    "decode_sum": [_NUMBER, _NUMBER, _POINTER, _NUMBER, _NUMBER, _POINTER],
    "recode": [_NUMBER, _NUMBER, _POINTER, _NUMBER, _NUMBER, _POINTER],
    "decode_sum_norm": [
        *[_NUMBER, _NUMBER, _POINTER, _NUMBER, _POINTER, _POINTER],
        *[_NUMBER, ctypes.c_float, _NUMBER, _NUMBER, _POINTER],
    ],
}
_RETURNS_STATUS = {"quantised", "dense", "mix"}  # 1 where there was no memory
_RETURNS_NUMBER = {
    *_RETURNS_STATUS,
    "quantise_weights",
    "set_codes",
    "rows_at_once",
    "shared_room_bytes",
    "shared_sum",
    "shared_share",
    "shared_gather",
}
_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2, torch.float16: 3}  # as kernels/cpu/numbers.h numbers them
_COMPUTED = (torch.float32, torch.bfloat16)  # the others are for what is kept
LEVEL_NAMES = ("plain C", "AVX2", "AVX-512 VNNI")


@cache
def library() -> ctypes.CDLL | None:
    """Return the library of kernels/cpu, or None where it was not built, or for another machine or version."""
    for path in sorted(_FOLDER.glob("native.*so")):
        try:
            found = ctypes.CDLL(str(path))
            found.ollampi_interface.restype = _NUMBER
            if found.ollampi_interface() == INTERFACE:
                return _typed(found)
        except (OSError, AttributeError):
            continue
    return None


@cache
def level() -> int:
    """Return the best that this CPU can run of LEVEL_NAMES, 0 without a library."""
    native = library()
    return 0 if native is None else int(native.ollampi_level())


def levels() -> list[int]:
    """Return what kernels can be computed with here, as `level` counts; nothing without a library."""
    return [] if library() is None else list(range(level() + 1))


def number_of(dtype: torch.dtype) -> int:
    """Return how the library calls a type that numbers are kept in."""
    return _TYPES[dtype]


def serves(x: Tensor) -> bool:
    """Return whether the library can compute with a tensor of this type, where it is."""
    return library() is not None and x.is_cpu and x.dtype in _COMPUTED


def call(name: str, *arguments: object) -> None:
    """Call a function of the library; raise MemoryError where it says that there was no memory."""
    if function(name)(*arguments):
        raise MemoryError(f"no memory for the buffers of the kernel {name}; load smaller models, or fewer")


def stay_alone() -> None:
    """Let kernels that this thread calls run in it alone, without other threads of OpenMP; torch's operators too."""
    if (found := library()) is not None:
        found.omp_set_num_threads(1)


@cache
def function(name: str) -> Callable[..., int | None]:
    """Return a function of the library, which must be there."""
    found: Callable[..., int | None] = getattr(library(), f"ollampi_{name}")
    return found


def address(array: NDArray[np.generic]) -> int:
    """Return where the elements of an array begin; the array must be C-contiguous and outlive the call it is for."""
    return array.ctypes.data


def _typed(found: ctypes.CDLL) -> ctypes.CDLL:
    """Return the library with its functions' arguments declared, as in the C files."""
    found.ollampi_level.restype = _NUMBER
    for name, arguments in _ARGUMENTS.items():
        function = getattr(found, f"ollampi_{name}")
        function.argtypes = arguments
        function.restype = _NUMBER if name in _RETURNS_NUMBER else None
    return found
