"""Print how fast the codecs of the exchange are, against the memory of this machine, and how large their errors.

    python benchmarks/codec.py [--kib 8 256 16384] [--threads N] [--seconds 0.3] [--reference]

A size is that of the vector in fp32. Times are the least of many calls from Python; the calls alone are those for 32
numbers. A rate counts what must be read and written: x and codes. Its share is that of a plain copy in C of as many
bytes as the vector has, by as many threads, measured in turns with the codecs. Errors are those of Gaussian numbers,
over their standard deviation.
"""

from __future__ import annotations

import argparse
import ctypes
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ollampi.kernels import native
from ollampi.kernels.codec import NAMES, Codec, Reference, num_bytes
from ollampi.kernels.codecs import codec_of

SOURCE = """
#include <stdint.h>
#include <string.h>
enum { BLOCK = 1 << 13, FEW = 1 << 19 };
void copy(const char *from, char *to, int64_t size) {
    if (size <= FEW) {
        memcpy(to, from, size);
        return;
    }
#pragma omp parallel for schedule(static)
    for (int64_t at = 0; at < size; at += BLOCK) memcpy(to + at, from + at, size - at < BLOCK ? size - at : BLOCK);
}
"""
CPU = torch.device("cpu")


class Copy:
    """A plain copy, compiled with cc for this machine, by as many threads as the codecs use."""

    def __init__(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            source, library = Path(folder) / "copy.c", Path(folder) / "copy.so"
            source.write_text(SOURCE)
            line = ["cc", "-O3", "-march=native", "-fopenmp", "-shared", "-fPIC", str(source), "-o", str(library)]
            subprocess.run(line, check=True)
            self._copy = ctypes.CDLL(str(library)).copy
        self._copy.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]

    def __call__(self, source: Tensor, target: Tensor) -> None:
        """Copy source [n] to target [n]."""
        self._copy(source.data_ptr(), target.data_ptr(), source.nbytes)


@dataclass
class Case:
    """What is measured of one level: x [n] to codes, these to out [n], both one after the other."""

    codec: Codec
    x: Tensor
    codes: Tensor = field(init=False)
    out: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.codes = torch.zeros(num_bytes(self.codec.level, len(self.x)), dtype=torch.uint8)
        self.out = torch.zeros_like(self.x)
        self.both()

    def encode(self) -> None:
        self.codec.encode(self.x, self.codes)

    def decode(self) -> None:
        self.codec.decode_sum([self.codes], self.out)

    def both(self) -> None:
        self.encode()
        self.decode()

    def size(self) -> int:
        """Return the bytes that encoding reads and writes, and decoding too."""
        return self.x.nbytes + self.codes.nbytes

    def errors(self) -> tuple[float, float]:
        """Return the root of the mean square of what reading after writing is off by, and the largest."""
        off = self.out.double() - self.x.double()
        return float(off.square().mean().sqrt()), float(off.abs().max())


def least_seconds(calls: list[Callable[[], None]], seconds: float) -> list[float]:
    """Return the least time of each call; they take turns, for so long in all for each."""
    least, began = [float("inf")] * len(calls), time.perf_counter()
    while time.perf_counter() - began < seconds * len(calls):
        for i, call in enumerate(calls):
            at = time.perf_counter()
            call()
            least[i] = min(least[i], time.perf_counter() - at)
    return least


def show(kib: int, seconds: float, make: Callable[[int], Codec], copy: Copy) -> None:
    """Print a table for one size."""
    x = torch.randn(kib * 256)
    cases, target = [Case(make(level), x) for level in range(len(NAMES))], torch.zeros_like(x)
    calls = [call for case in cases for call in (case.encode, case.decode, case.both)]
    copying, *times = least_seconds([lambda: copy(x, target), *calls], seconds)
    memory = 2 * x.nbytes / copying
    print(f"\n{kib} KiB; a copy takes {copying * 1e6:.2f} us: {memory / 1e9:.1f} GB/s read and written")
    print("level        encode us   GB/s   decode us   GB/s     both us   GB/s  of a copy's   error: rms     max")
    for i, case in enumerate(cases):
        encode, decode, both = times[3 * i : 3 * i + 3]
        rates = [size / took for size, took in zip((case.size(),) * 2, (encode, decode), strict=True)]
        rate, (rms, most) = 2 * case.size() / both, case.errors()
        print(
            f"{i} {NAMES[i]:5} {encode * 1e6:14.2f} {rates[0] / 1e9:6.1f} {decode * 1e6:11.2f} {rates[1] / 1e9:6.1f}"
            f" {both * 1e6:11.2f} {rate / 1e9:6.1f} {rate / memory:12.0%} {rms:13.1e} {most:8.1e}"
        )


def show_calls(seconds: float, make: Callable[[int], Codec]) -> None:
    """Print what of the times of small vectors is the call."""
    case = Case(make(2), torch.randn(32))
    encode, decode = least_seconds([case.encode, case.decode], seconds)
    print(f"the calls alone: encode {encode * 1e6:.2f} us, decode {decode * 1e6:.2f} us")


def main() -> None:
    """Print a table for each size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kib", type=int, nargs="+", default=[8, 256, 16384])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=0.3, help="for each figure")
    parser.add_argument("--reference", action="store_true", help="the codecs in torch's operators")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    which = "torch" if args.reference or native.library() is None else f"C, {native.LEVEL_NAMES[native.level()]}"
    print(f"{which}, at most {args.threads} threads")
    make: Callable[[int], Codec] = Reference if args.reference else lambda level: codec_of(level, CPU)
    show_calls(args.seconds, make)
    for kib in args.kib:
        show(kib, args.seconds, make, Copy())


if __name__ == "__main__":
    main()
