"""The emulation in which the CUDA kernels are tested does what CUDA's documentation says of blocks and warps."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from support.emulated import built, run
from support.fake_cupy import needs_compiler

pytestmark = needs_compiler
KERNELS = r"""
extern "C" __global__ void places(unsigned *out, int n) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = 1000000 * gridDim.x + i;
}
extern "C" __global__ void shuffles(unsigned *out, int by) {
    unsigned mine = 100 * blockIdx.x + threadIdx.x;
    out[2 * threadIdx.x] = __shfl_xor_sync(~0u, mine, by);
    out[2 * threadIdx.x + 1] = __shfl_sync(~0u, mine, threadIdx.x % 32 / 8);
}
extern "C" __global__ void reversed(unsigned *out, int rounds) {
    __shared__ unsigned kept[96];
    for (int k = 0; k < rounds; k++) {
        kept[threadIdx.x] = k ? out[threadIdx.x] : threadIdx.x;
        __syncthreads();
        out[threadIdx.x] = kept[95 - threadIdx.x];
        __syncthreads();
    }
}
extern "C" __global__ void waiting(unsigned *out, int missing) {
    if ((int)threadIdx.x < missing) return;
    out[threadIdx.x] = __shfl_sync(~0u, 1u, 31);
}
EMULATE(places)
EMULATE(shuffles)
EMULATE(reversed)
EMULATE(waiting)
"""


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    return built(KERNELS)


def launch(library: ctypes.CDLL, name: str, blocks: int, threads: int, size: int, number: int) -> tuple[int, list[int]]:
    """Return the status of a launch, and what the kernel wrote into [size]."""
    out = np.zeros(size, np.uint32)
    given = ctypes.c_void_p(out.ctypes.data), ctypes.c_int(number)
    pointers = (ctypes.c_void_p * 2)(*(ctypes.addressof(value) for value in given))
    return run(library, name, (blocks,), threads, pointers), out.tolist()


def test_threads_know_their_places(library: ctypes.CDLL) -> None:
    status, out = launch(library, "places", 3, 40, 120, 110)
    assert status == 0
    assert out == [3_000_000 + i for i in range(110)] + [0] * 10


@pytest.mark.parametrize("by", [1, 4, 31])
def test_shuffles_stay_within_a_warp(library: ctypes.CDLL, by: int) -> None:
    status, out = launch(library, "shuffles", 1, 96, 192, by)
    assert status == 0
    assert out[::2] == [i ^ by for i in range(96)]
    assert out[1::2] == [i // 32 * 32 + i % 32 // 8 for i in range(96)]


@pytest.mark.parametrize("rounds", [1, 2, 5])
def test_a_block_waits_for_all_its_threads(library: ctypes.CDLL, rounds: int) -> None:
    status, out = launch(library, "reversed", 1, 96, 96, rounds)
    assert status == 0
    assert out == list(range(96)) if rounds % 2 == 0 else list(range(95, -1, -1))


@pytest.mark.parametrize(("missing", "status"), [(0, 0), (1, 1), (32, 0), (40, 1), (64, 0)])
def test_threads_that_wait_for_others_that_ended_are_found(library: ctypes.CDLL, missing: int, status: int) -> None:
    assert launch(library, "waiting", 1, 64, 64, missing)[0] == status
    assert launch(library, "waiting", 1, 64, 64, 0) == (0, [1] * 64)  # it can go on afterwards
