/* Encode vectors, add them up and decode them, on CUDA devices: kernels/codec.py defines every bit.

   A warp takes a tile of 512 numbers: 4 rounds of 4 groups, of which each has 8 lanes with 4 numbers. So a lane reads
   or writes 16 bytes of fp32, and the codes of a warp lie side by side: 128 bytes a round in int8. The 16 scales of a
   tile are a sector of 32 bytes, which 16 lanes read or write at once and shuffles bring to their groups.

   Memory bandwidth is what limits these kernels. To hide some 700 ns at 3.35 TB/s an H100 needs 18 KB in flight for
   each of its 132 multiprocessors. A thread that encodes issues 4 loads of 16 bytes before it uses the first: with 8
   blocks of 128 threads, which have 64 registers each, 64 KB. One that decodes int8 has 4 loads of 4 bytes on their
   way: 16 KB, where reading is 35 % of the traffic of 2 parts and 68 % of that of 8, so that 6 and 12 KB are needed.
   Wider loads of codes would tear the writes of a warp apart, which are the rest. At full bandwidth 2.9 numbers are
   encoded in a clock of a multiprocessor, some 16 instructions each: 0.4 of what it issues. fp8 takes twice as many;
   the conversions of compute capability 8.9 are not used, so that one text serves all devices and the tests. None of
   this has been measured yet.

   What is not aligned to its accesses, and the last tile, goes byte by byte and is slow: let parts begin at multiples
   of 16 bytes. */
#include "numbers.cuh" /* kernels/gpu.py puts its text here */

#define BLOCK_THREADS 128 /* as in kernels/gpu.py */
#define BLOCKS_AT_ONCE 8  /* of a multiprocessor, likewise */
#define MOST_PARTS 128    /* likewise */
#define MOST_THREADS 1024 /* of a block that norms a row, likewise */

static const int WARP = 32, ROUNDS = 4, ROUND = 4 * WARP, TILE = ROUNDS * ROUND, TILE_GROUPS = TILE / GROUP;

struct Parts {
    const u8 *at[MOST_PARTS];
};

DEVICE bool all_aligned(const Parts &parts, int count, int bytes) {
    bool good = true;
    for (int p = 0; p < count; p++) good = good && aligned(parts.at[p], bytes);
    return good;
}

DEVICE i64 first_tile() { return ((i64)blockIdx.x * blockDim.x + threadIdx.x) / WARP * TILE; }
DEVICE i64 next_tile() { return (i64)gridDim.x * blockDim.x / WARP * TILE; }

template <int LEVEL, bool FAST> DEVICE void put_words(const u32 (&words)[ROUNDS], u8 *codes, i64 base, i64 groups) {
    const int lane = threadIdx.x % WARP;
    if (LEVEL == 4) {
        /* Lanes j and j + 4 of a group hold the low and the high halves of its bytes. In pairs of rounds, the low lanes
           give the second round away and write the first one, the high lanes the other way round. */
        const bool high = lane & 4;
#pragma unroll
        for (int u = 0; u < ROUNDS; u += 2) {
            u32 kept = high ? words[u + 1] : words[u];
            u32 other = __shfl_xor_sync(ALL_LANES, high ? words[u] : words[u + 1], 4);
            i64 group = base / GROUP + (u + high) * 4 + lane / LANES;
            if (FAST || group < groups)
                put32<FAST>(codes + group * 16 + lane % 4 * 4, high ? other | kept << 4 : kept | other << 4);
        }
    } else {
#pragma unroll
        for (int u = 0; u < ROUNDS; u++) {
            i64 i = base + u * ROUND + lane * 4;
            if (FAST || i < groups * GROUP) put32<FAST>(codes + i, words[u]);
        }
    }
}

/* Write a tile of x [n]; all lanes of the warp. */
template <int LEVEL, bool FAST> DEVICE void put_tile(const float4 (&x)[ROUNDS], u8 *codes, i64 base, i64 n) {
    const int lane = threadIdx.x % WARP;
    if (LEVEL < 2) {
#pragma unroll
        for (int u = 0; u < ROUNDS; u++) put_plain<LEVEL, FAST>(x[u], codes, base + u * ROUND + lane * 4, n);
        return;
    }
    const i64 groups = (n + GROUP - 1) / GROUP, group = base / GROUP + lane;
    u32 words[ROUNDS], mine = 0;
#pragma unroll
    for (int u = 0; u < ROUNDS; u++) {
        u32 scale = scale_of<LEVEL>(group_key(x[u]));
        words[u] = to_codes<LEVEL>(x[u], scale);
        u32 given = __shfl_sync(ALL_LANES, scale, lane % 4 * LANES);
        if (lane / 4 == u) mine = given;
    }
    put_words<LEVEL, FAST>(words, codes, base, groups);
    if (lane < TILE_GROUPS && group < groups) put16<FAST>(codes + groups * group_bytes(LEVEL) + 2 * group, mine);
}

/* Read a tile of one part of n numbers; all lanes of the warp. All loads come before the first use. */
template <int LEVEL, bool FAST> DEVICE void get_tile(float4 (&x)[ROUNDS], const u8 *part, i64 base, i64 n) {
    const int lane = threadIdx.x % WARP;
    if (LEVEL < 2) {
#pragma unroll
        for (int u = 0; u < ROUNDS; u++) x[u] = get_plain<LEVEL, FAST>(part, base + u * ROUND + lane * 4, n);
        return;
    }
    const i64 groups = (n + GROUP - 1) / GROUP, group = base / GROUP + lane;
    u32 words[ROUNDS], mine = 0;
    if (lane < TILE_GROUPS && group < groups) mine = get16<FAST>(part + groups * group_bytes(LEVEL) + 2 * group);
#pragma unroll
    for (int u = 0; u < ROUNDS; u++) {
        i64 i = base + u * ROUND + lane * 4;
        words[u] = FAST || i < groups * GROUP ? get_codes<LEVEL, FAST>(part, i) : 0;
    }
#pragma unroll
    for (int u = 0; u < ROUNDS; u++)
        x[u] = from_codes<LEVEL>(words[u], from_bf16(__shfl_sync(ALL_LANES, mine, u * 4 + lane / LANES)));
}

/* Read a tile of the sum of the parts, in their order; all lanes of the warp. */
template <int LEVEL, bool FAST>
DEVICE void sum_tile(float4 (&total)[ROUNDS], const Parts &parts, int count, i64 base, i64 n) {
    get_tile<LEVEL, FAST>(total, parts.at[0], base, n);
#pragma unroll 1
    for (int p = 1; p < count; p++) {
        float4 x[ROUNDS];
        get_tile<LEVEL, FAST>(x, parts.at[p], base, n);
#pragma unroll
        for (int u = 0; u < ROUNDS; u++) total[u] = added(total[u], x[u]);
    }
}

template <bool FAST> DEVICE void load_tile(float4 (&x)[ROUNDS], const float *from, i64 base, i64 n) {
#pragma unroll
    for (int u = 0; u < ROUNDS; u++) x[u] = get_numbers<FAST>(from, base + u * ROUND + threadIdx.x % WARP * 4, n);
}

template <bool FAST> DEVICE void store_tile(const float4 (&x)[ROUNDS], float *to, i64 base, i64 n) {
#pragma unroll
    for (int u = 0; u < ROUNDS; u++) put_numbers<FAST>(x[u], to, base + u * ROUND + threadIdx.x % WARP * 4, n);
}

/* ---- kernels: a grid of any size; n is at least 1 ---- */

template <int LEVEL> DEVICE void encode(const float *x, i64 n, u8 *codes) {
    const bool fast = aligned(x, 16) && aligned(codes, access_bytes(LEVEL));
    for (i64 base = first_tile(); base < n; base += next_tile()) {
        float4 tile[ROUNDS];
        if (fast && base + TILE <= n) {
            load_tile<true>(tile, x, base, n);
            put_tile<LEVEL, true>(tile, codes, base, n);
        } else {
            load_tile<false>(tile, x, base, n);
            put_tile<LEVEL, false>(tile, codes, base, n);
        }
    }
}

template <int LEVEL> DEVICE void decode_sum(const Parts &parts, int count, i64 n, float *out) {
    const bool fast = aligned(out, 16) && all_aligned(parts, count, access_bytes(LEVEL));
    for (i64 base = first_tile(); base < n; base += next_tile()) {
        float4 total[ROUNDS];
        if (fast && base + TILE <= n) {
            sum_tile<LEVEL, true>(total, parts, count, base, n);
            store_tile<true>(total, out, base, n);
        } else {
            sum_tile<LEVEL, false>(total, parts, count, base, n);
            store_tile<false>(total, out, base, n);
        }
    }
}

/* codes may be one of the parts: no warp reads what another one writes. */
template <int LEVEL> DEVICE void recode(const Parts &parts, int count, i64 n, u8 *codes) {
    const bool fast = aligned(codes, access_bytes(LEVEL)) && all_aligned(parts, count, access_bytes(LEVEL));
    for (i64 base = first_tile(); base < n; base += next_tile()) {
        float4 total[ROUNDS];
        if (fast && base + TILE <= n) {
            sum_tile<LEVEL, true>(total, parts, count, base, n);
            __syncwarp();
            put_tile<LEVEL, true>(total, codes, base, n);
        } else {
            sum_tile<LEVEL, false>(total, parts, count, base, n);
            __syncwarp();
            put_tile<LEVEL, false>(total, codes, base, n);
        }
    }
}

/* Numbers i to i + 3 of the sum of the parts of n numbers; all are there, and aligned. */
template <int LEVEL> DEVICE float4 sum_four(const Parts &parts, int count, i64 i, i64 n) {
    const i64 groups = (n + GROUP - 1) / GROUP;
    float4 total = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll 4
    for (int p = 0; p < count; p++) {
        const u8 *part = parts.at[p];
        float4 x;
        if (LEVEL < 2) {
            x = get_plain<LEVEL, true>(part, i, n);
        } else {
            u32 scale = get16<true>(part + groups * group_bytes(LEVEL) + i / GROUP * 2);
            x = from_codes<LEVEL>(get_codes<LEVEL, true>(part, i), from_bf16(scale));
        }
        total = p ? added(total, x) : x;
    }
    return total;
}

/* The sum of x over all threads of the block, in each of them. */
DEVICE float block_sum(float x) {
    __shared__ float sums[WARP];
    for (int step = 1; step < WARP; step *= 2) x = __fadd_rn(x, __shfl_xor_sync(ALL_LANES, x, step));
    if (threadIdx.x % WARP == 0) sums[threadIdx.x / WARP] = x;
    __syncthreads();
    x = threadIdx.x % WARP < blockDim.x / WARP ? sums[threadIdx.x % WARP] : 0.0f;
    for (int step = 1; step < WARP; step *= 2) x = __fadd_rn(x, __shfl_xor_sync(ALL_LANES, x, step));
    return x;
}

DEVICE float4 get_weights(const void *weight, bool bf16, i64 i) {
    return bf16 ? get_plain<1, true>((const u8 *)weight, i, 0) : get_plain<0, true>((const u8 *)weight, i, 0);
}

/* A block for each row; width is a multiple of 4, and everything aligned to 16 bytes. A thread reads of residual what
   it wrote itself, from the cache. */
template <int LEVEL>
DEVICE void decode_sum_norm(const Parts &parts, int count, float *residual, const void *weight, bool bf16, float eps,
                            i64 width, float *normed) {
    const i64 row = blockIdx.x * width, n = gridDim.x * width;
    float squares = 0.0f;
    for (i64 c = threadIdx.x * 4; c < width; c += blockDim.x * 4) {
        float4 *at = (float4 *)(residual + row + c);
        float4 x = added(*at, sum_four<LEVEL>(parts, count, row + c, n));
        *at = x;
        squares += x.x * x.x + x.y * x.y + x.z * x.z + x.w * x.w;
    }
    const float factor = 1.0f / sqrtf(block_sum(squares) / width + eps);
    for (i64 c = threadIdx.x * 4; c < width; c += blockDim.x * 4) {
        float4 x = *(const float4 *)(residual + row + c), w = get_weights(weight, bf16, c);
        *(float4 *)(normed + row + c) =
            make_float4(x.x * factor * w.x, x.y * factor * w.y, x.z * factor * w.z, x.w * factor * w.w);
    }
}

#define KERNEL extern "C" __global__ void __launch_bounds__
#define KERNELS(LEVEL)                                                                                                \
    KERNEL(BLOCK_THREADS, BLOCKS_AT_ONCE) encode_##LEVEL(const float *x, i64 n, u8 *codes) {                          \
        encode<LEVEL>(x, n, codes);                                                                                   \
    }                                                                                                                 \
    KERNEL(BLOCK_THREADS, BLOCKS_AT_ONCE)                                                                             \
    decode_sum_##LEVEL(const __grid_constant__ Parts parts, int count, i64 n, float *out) {                           \
        decode_sum<LEVEL>(parts, count, n, out);                                                                      \
    }                                                                                                                 \
    KERNEL(BLOCK_THREADS, BLOCKS_AT_ONCE)                                                                             \
    recode_##LEVEL(const __grid_constant__ Parts parts, int count, i64 n, u8 *codes) {                                \
        recode<LEVEL>(parts, count, n, codes);                                                                        \
    }                                                                                                                 \
    KERNEL(MOST_THREADS)                                                                                              \
    decode_sum_norm_##LEVEL(const __grid_constant__ Parts parts, int count, float *residual, const void *weight,      \
                            int bf16, float eps, i64 width, float *normed) {                                          \
        decode_sum_norm<LEVEL>(parts, count, residual, weight, bf16, eps, width, normed);                             \
    }

KERNELS(0)
KERNELS(1)
KERNELS(2)
KERNELS(3)
KERNELS(4)
