"""Measure how fast a plain C loop reads memory on all cores that this process may use."""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np

SIZE, PASSES = 1 << 30, 4
SOURCE = """
#include <stdint.h>
uint64_t read_all(const uint64_t *numbers, int64_t count) {
    uint64_t sum = 0;
#pragma omp parallel for simd schedule(static) reduction(+ : sum)
    for (int64_t i = 0; i < count; i++) sum += numbers[i];
    return sum;
}
"""


class ReadBandwidth:
    """The loop, compiled with cc for this machine, and the GiB that it reads."""

    def __init__(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            source, library = Path(folder) / "read.c", Path(folder) / "read.so"
            source.write_text(SOURCE)
            line = ["cc", "-O3", "-march=native", "-fopenmp", "-shared", "-fPIC", str(source), "-o", str(library)]
            subprocess.run(line, check=True)
            self._loop = ctypes.CDLL(str(library)).read_all
        self._loop.argtypes, self._loop.restype = [ctypes.c_void_p, ctypes.c_int64], ctypes.c_uint64
        self._numbers = np.ones(SIZE // 8, dtype=np.uint64)

    def measure(self) -> float:
        """Return bytes per second of some passes."""
        began = time.perf_counter()
        for _ in range(PASSES):
            self._loop(self._numbers.ctypes.data, len(self._numbers))
        return PASSES * SIZE / (time.perf_counter() - began)


if __name__ == "__main__":
    print(f"{ReadBandwidth().measure() / 1e9:.1f} GB/s")
