"""Compile the CUDA sources of kernels/cuda for the GPU at hand, by NVRTC, and launch them on torch's stream.

NVRTC comes with a torch that was built for CUDA: neither nvcc nor another package is needed.
"""

from __future__ import annotations

import ctypes
import sysconfig
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

FOLDER = Path(__file__).parent / "cuda"
Argument = Tensor | int | float | None  # a pointer, an int, a float, a null pointer


class CudaError(RuntimeError):
    """The driver or the compiler refused something."""


class Kernel(Protocol):
    """A compiled kernel with its constants set."""

    def __call__(self, grid: tuple[int, int, int], threads: int, arguments: Sequence[Argument]) -> None:
        """Start a grid of blocks of so many threads on the current stream; does not wait."""


class Kernels(Protocol):
    """Where kernels come from: the GPU's compiler, or an emulation in tests."""

    def get(self, file: str, name: str, **constants: int) -> Kernel:
        """Return a kernel of a file in kernels/cuda, compiled once for each set of constants."""


class Driver:
    """Kernels of the current GPU; raise CudaError where they cannot be compiled or started."""

    def __init__(self) -> None:
        self._cuda = ctypes.CDLL("libcuda.so.1")

    @cache  # noqa: B019 there is one driver, and it lives as long as the process
    def get(self, file: str, name: str, **constants: int) -> Kernel:
        """Return a kernel of a file."""
        options = ["--std=c++17", "--fmad=true", *(f"-D{key}={value}" for key, value in constants.items())]
        code = compiled((FOLDER / file).read_text(), file, options, torch.cuda.get_device_capability())
        module, function = ctypes.c_void_p(), ctypes.c_void_p()
        self._check(self._cuda.cuModuleLoadData(ctypes.byref(module), code))
        self._check(self._cuda.cuModuleGetFunction(ctypes.byref(function), module, name.encode()))

        def launch(grid: tuple[int, int, int], threads: int, arguments: Sequence[Argument]) -> None:
            """Start the kernel on torch's current stream."""
            held = [as_c(argument) for argument in arguments]
            pointers = (ctypes.c_void_p * len(held))(*(ctypes.addressof(value) for value in held))
            stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
            self._check(self._cuda.cuLaunchKernel(function, *grid, threads, 1, 1, 0, stream, pointers, None))

        return launch

    def _check(self, status: int) -> None:
        """Raise CudaError with the driver's words for a status other than 0."""
        if status:
            text = ctypes.c_char_p()
            self._cuda.cuGetErrorString(status, ctypes.byref(text))
            raise CudaError(f"the CUDA driver says {status}: {(text.value or b'').decode()}")


def as_c(argument: Argument) -> ctypes.c_void_p | ctypes.c_int | ctypes.c_float:
    """Return an argument as kernels take it."""
    if argument is None or isinstance(argument, Tensor):
        return ctypes.c_void_p(None if argument is None else argument.data_ptr())
    return ctypes.c_int(argument) if isinstance(argument, int) else ctypes.c_float(argument)


def compiled(text: str, name: str, options: Sequence[str], capability: tuple[int, int]) -> bytes:
    """Return the machine code of a source for GPUs of a compute capability; raise CudaError with the compiler's words.

    name: of the source, for these words; options: more of NVRTC's.
    """
    library, program = nvrtc(), ctypes.c_void_p()
    status = library.nvrtcCreateProgram(ctypes.byref(program), text.encode(), name.encode(), 0, None, None)
    options = [f"--gpu-architecture=sm_{capability[0]}{capability[1]}", *options]
    array = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    status = status or library.nvrtcCompileProgram(program, len(options), array)
    try:
        if status:
            raise CudaError(f"{name}: NVRTC says {status}: {_taken(library, 'ProgramLog', program).decode()}")
        return _taken(library, "CUBIN", program)
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def _taken(library: ctypes.CDLL, what: str, program: ctypes.c_void_p) -> bytes:
    """Return the log or the code of a program."""
    size = ctypes.c_size_t()
    getattr(library, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(size.value)
    getattr(library, f"nvrtcGet{what}")(program, buffer)
    return buffer.raw


@cache
def nvrtc() -> ctypes.CDLL:
    """Return NVRTC; raise CudaError where there is none."""
    for path in _candidates():
        try:
            return ctypes.CDLL(path)
        except OSError:
            continue
    raise CudaError("libnvrtc.so is not to be found; install a torch that was built for CUDA, or the CUDA toolkit")


def _candidates() -> Iterator[str]:
    """Yield where NVRTC may be: beside torch, where the loader looks, in the toolkit."""
    packages = Path(sysconfig.get_paths()["platlib"]) / "nvidia"
    yield from (str(path) for path in sorted(packages.glob("*/lib/libnvrtc.so.*")))
    yield from ("libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so")
    yield from (str(path) for path in sorted(Path("/usr/local/cuda/lib64").glob("libnvrtc.so.*")))


@cache
def driver() -> Driver | None:
    """Return the kernels of the current GPU, None where torch sees none."""
    return Driver() if torch.cuda.is_available() else None
