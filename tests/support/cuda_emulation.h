/* What CUDA C++ has and C++ lacks, as far as kernels/cuda needs it: each thread of a block is a fiber.

   Blocks run one after the other. A fiber runs until it meets others (a shuffle, a barrier) and they are not there yet.
   Where all that are left wait, which would hang a device or worse, `launch` returns 1. Compile with
   -ffp-contract=off, in front of the kernels, and append EMULATE(name) for each of these. */
#include <math.h>
#include <stdint.h>
#include <string.h>
#include <ucontext.h>

#include <functional>
#include <utility>
#include <vector>

#define __device__
#define __global__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __restrict__
#define __shared__ static /* one block at a time */

struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(2) char2 {
    signed char x, y;
};
struct Place {
    unsigned x, y, z;
};
static float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
static float2 make_float2(float x, float y) { return {x, y}; }
static uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
static Place threadIdx, blockIdx, blockDim, gridDim;

static unsigned max(unsigned a, unsigned b) { return a > b ? a : b; }
static int max(int a, int b) { return a > b ? a : b; }
static int min(int a, int b) { return a < b ? a : b; }
static unsigned __float_as_uint(float x) {
    unsigned bits;
    memcpy(&bits, &x, 4);
    return bits;
}
static float __uint_as_float(unsigned bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}
static float __int_as_float(int bits) { return __uint_as_float((unsigned)bits); }
template <class T> static T __ldg(const T *at) {
    if ((uintptr_t)at % sizeof(T)) __builtin_trap(); /* as a device would */
    return *at;
}
static float rsqrtf(float x) { return 1.0f / sqrtf(x); }
static float __fadd_rn(float a, float b) { return a + b; }
static float __fmul_rn(float a, float b) { return a * b; }
static float __fdiv_rn(float a, float b) { return a / b; }
static float __frcp_rn(float x) { return 1.0f / x; }
static int __float2int_rn(float x) { return (int)lrintf(x); }

namespace emulated {

const int STACK_BYTES = 64 << 10, WARP_LANES = 32;

struct Meeting {
    unsigned arrived = 0;
    unsigned long times = 0;
};
struct Warp {
    Meeting meeting;
    unsigned given[WARP_LANES];
};
struct Fiber {
    ucontext_t context;
    std::vector<char> stack;
    bool done;
};

static std::vector<Fiber> fibers;
static std::vector<Warp> warps;
static Meeting block_meeting;
static ucontext_t scheduler;
static std::function<void()> body;
static bool progress;

static void meet(Meeting &meeting, unsigned expected) {
    unsigned long times = meeting.times;
    if (++meeting.arrived == expected) {
        meeting.arrived = 0;
        meeting.times++;
        progress = true;
    }
    while (meeting.times == times) swapcontext(&fibers[threadIdx.x].context, &scheduler);
}

static unsigned shuffled(unsigned mask, unsigned value, int from) {
    Warp &warp = warps[threadIdx.x / WARP_LANES];
    warp.given[threadIdx.x % WARP_LANES] = value;
    meet(warp.meeting, __builtin_popcount(mask));
    unsigned result = warp.given[from % WARP_LANES];
    meet(warp.meeting, __builtin_popcount(mask)); /* nobody overwrites it before all have read */
    return result;
}

static void run_fiber() {
    body();
    fibers[threadIdx.x].done = progress = true;
}

/* Returns whether all threads came to their end. */
static bool run_block() {
    warps.assign((blockDim.x + WARP_LANES - 1) / WARP_LANES, Warp());
    block_meeting = Meeting();
    fibers.resize(blockDim.x);
    for (Fiber &fiber : fibers) {
        fiber.done = false;
        fiber.stack.resize(STACK_BYTES);
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.data();
        fiber.context.uc_stack.ss_size = STACK_BYTES;
        fiber.context.uc_link = &scheduler;
        makecontext(&fiber.context, run_fiber, 0);
    }
    for (bool left = true; left;) {
        left = progress = false;
        for (threadIdx.x = 0; threadIdx.x < blockDim.x; threadIdx.x++) {
            if (fibers[threadIdx.x].done) continue;
            swapcontext(&scheduler, &fibers[threadIdx.x].context);
            left = left || !fibers[threadIdx.x].done;
        }
        if (left && !progress) return false;
    }
    return true;
}

template <class... A, size_t... I>
static void call(void (*kernel)(A...), void **arguments, std::index_sequence<I...>) {
    kernel(*(A *)arguments[I]...);
}

/* As the driver's cuLaunchKernel: where each argument lies. */
template <class... A> static int launch(void (*kernel)(A...), Place grid, unsigned threads, void **arguments) {
    body = [=] { call(kernel, arguments, std::index_sequence_for<A...>()); };
    gridDim = grid;
    blockDim = {threads, 1, 1};
    for (blockIdx.z = 0; blockIdx.z < grid.z; blockIdx.z++)
        for (blockIdx.y = 0; blockIdx.y < grid.y; blockIdx.y++)
            for (blockIdx.x = 0; blockIdx.x < grid.x; blockIdx.x++)
                if (!run_block()) return 1;
    return 0;
}

}  // namespace emulated

static unsigned __shfl_sync(unsigned mask, unsigned value, int from) { return emulated::shuffled(mask, value, from); }
static unsigned __shfl_xor_sync(unsigned mask, unsigned value, int by) {
    return emulated::shuffled(mask, value, threadIdx.x % emulated::WARP_LANES ^ by);
}
static float __shfl_xor_sync(unsigned mask, float value, int by) {
    return __uint_as_float(__shfl_xor_sync(mask, __float_as_uint(value), by));
}
static void __syncwarp(unsigned mask = ~0u) { __shfl_sync(mask, 0, 0); }
static void __syncthreads() { emulated::meet(emulated::block_meeting, blockDim.x); }

#define EMULATE(name)                                                                              \
    extern "C" int launch_##name(const unsigned *grid, unsigned threads, void **arguments) {       \
        return emulated::launch(name, {grid[0], grid[1], grid[2]}, threads, arguments);            \
    }
