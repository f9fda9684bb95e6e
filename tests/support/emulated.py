"""Run the CUDA kernels of kernels/cuda on the CPU, as C++ (cuda_emulation.h): the same sources, the same launches."""

from __future__ import annotations

import ctypes
import hashlib
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest

from ollampi.kernels.cuda_module import FOLDER, Argument, CudaError, Kernel, as_c, nvrtc

HEADER = Path(__file__).parent / "cuda_emulation.h"
FLAGS = ["-std=c++17", "-O1", "-fPIC", "-shared", "-ffp-contract=off", "-fno-strict-aliasing", "-Wno-unused-function"]
_BUILT = Path(tempfile.gettempdir()) / "ollampi-emulated"


def _lacking() -> str:
    """Return why there is no NVRTC here, "" where there is."""
    try:
        nvrtc()
    except CudaError as e:
        return str(e)
    return ""


needs_nvrtc = pytest.mark.skipif(bool(_lacking()), reason=_lacking())


class Emulated:
    """Kernels that compute on tensors of the CPU; launched: file and name of each start, in order."""

    def __init__(self) -> None:
        self.launched: list[str] = []

    def get(self, file: str, name: str, **constants: int) -> Kernel:
        """Return a kernel of a file."""
        macros = "".join(f"#define {key} {value}\n" for key, value in sorted(constants.items()))
        library = built(macros + (FOLDER / file).read_text() + f"\nEMULATE({name})\n")

        def launch(grid: tuple[int, int, int], threads: int, arguments: Sequence[Argument]) -> None:
            """Run all blocks."""
            self.launched.append(name)
            held = [as_c(argument) for argument in arguments]
            pointers = (ctypes.c_void_p * len(held))(*(ctypes.addressof(value) for value in held))
            start(library, name, grid, threads, pointers)

        return launch


def start(library: ctypes.CDLL, name: str, grid: tuple[int, ...], threads: int, pointers: object) -> None:
    """Run all blocks of a grid; the pointers say where each argument lies."""
    assert run(library, name, grid, threads, pointers) == 0, "threads wait for each other"


def run(library: ctypes.CDLL, name: str, grid: tuple[int, ...], threads: int, pointers: object) -> int:
    """Return 0, or 1 where threads wait for others that never come."""
    sizes = (ctypes.c_uint * 3)(*grid, *[1] * (3 - len(grid)))
    return int(library[f"launch_{name}"](sizes, threads, pointers))


@cache
def built(text: str) -> ctypes.CDLL:
    """Return the library of kernels that are each named by EMULATE; kept until text or header change."""
    known = hashlib.blake2b((text + HEADER.read_text()).encode(), digest_size=16)
    path = _BUILT / f"{known.hexdigest()}.so"
    if not path.exists():
        _BUILT.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=_BUILT) as folder:
            source, made = Path(folder) / "kernels.cpp", Path(folder) / "kernels.so"
            source.write_text(text)
            subprocess.run(["g++", *FLAGS, "-w", "-include", HEADER, source, "-o", made], check=True)
            made.rename(path)
    return ctypes.CDLL(str(path))
