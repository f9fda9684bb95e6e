"""Load the native kernels where the package was built with a compiler; elsewhere their NumPy or torch twins serve."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_INTERFACE = 2  # what kernels/cpu/native.c says: a library of another one was built from other sources
_FOLDER = Path(__file__).parent / "cpu"


@cache
def library() -> ctypes.CDLL | None:
    """Return the library of kernels/cpu, or None where it was not built, or for another machine or version."""
    for path in sorted(_FOLDER.glob("native.*so")):
        try:
            found = ctypes.CDLL(str(path))
            found.ollampi_interface.restype = ctypes.c_int64
            if found.ollampi_interface() == _INTERFACE:
                return _typed(found)
        except (OSError, AttributeError):
            continue
    return None


def address(array: NDArray[np.generic]) -> int:
    """Return where the elements of an array begin; the array must be C-contiguous and outlive the call it is for."""
    return array.ctypes.data


def _typed(found: ctypes.CDLL) -> ctypes.CDLL:
    """Return the library with its functions' arguments declared, as in the C files."""
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    found.ollampi_top_tokens.argtypes = [pointer, number, number, number, *[pointer] * 5]
    found.ollampi_top_tokens.restype = None
    found.ollampi_draw.argtypes = [pointer, number, number, *[pointer] * 3]
    found.ollampi_draw.restype = None
    found.ollampi_matmul_level.restype = number
    found.ollampi_quantise_weights.argtypes = [pointer, number, number, number, pointer, number, pointer, pointer]
    found.ollampi_quantise_weights.restype = None
    found.ollampi_quantise.argtypes = [pointer, number, *[pointer] * 4]
    found.ollampi_quantise.restype = None
    found.ollampi_matmul.argtypes = [number, number, *[pointer] * 6, number, number, number, pointer]
    found.ollampi_matmul.restype = None
    return found
