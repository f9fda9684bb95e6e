// Products of few tokens with a weight matrix, as fast as the memory gives its weights; sums are in fp32.
//
// Constants: TOKENS, 1 to 8; for plain numbers KEPT (0 fp32, 1 bf16); for the panels of kernels/quantised.py BITS (8 or
// 4) and SCALES (1 bf16, 3 fp16), and of `restore` KEPT, what it writes.

#ifndef TOKENS
#define TOKENS 1
#endif
#define WARPS 8

static inline __device__ float wide(unsigned short bf16) { return __uint_as_float((unsigned)bf16 << 16); }

static inline __device__ unsigned short narrow(float x) {  // to the nearest bf16, ties to even; of finite numbers
    const unsigned bits = __float_as_uint(x);
    return (unsigned short)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

#ifndef BITS

#if KEPT == 0
#define AT_ONCE 4  // numbers in 16 bytes
typedef float Number;
static inline __device__ float number(Number x) { return x; }
static inline __device__ void unpack(uint4 packed, float *out) {
    out[0] = __uint_as_float(packed.x), out[1] = __uint_as_float(packed.y);
    out[2] = __uint_as_float(packed.z), out[3] = __uint_as_float(packed.w);
}
#else
#define AT_ONCE 8
typedef unsigned short Number;
static inline __device__ float number(Number x) { return wide(x); }
static inline __device__ void unpack(uint4 packed, float *out) {
    const unsigned words[4] = {packed.x, packed.y, packed.z, packed.w};
    for (int i = 0; i < 4; i++) {
        out[2 * i] = __uint_as_float(words[i] << 16);
        out[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
    }
}
#endif

// Block of WARPS * 32 threads: each warp two rows of weight [num_rows, width]; x [TOKENS, width], out [TOKENS, num_rows].
extern "C" __global__ void multiply_plain(const Number *weight, const float *x, float *out, int num_rows, int width) {
    const int lane = threadIdx.x % 32, first = (blockIdx.x * WARPS + threadIdx.x / 32) * 2;
    if (first >= num_rows) return;
    const int second = min(first + 1, num_rows - 1);
    const Number *rows[2] = {weight + (long long)first * width, weight + (long long)second * width};
    const int whole = width % AT_ONCE ? 0 : width / AT_ONCE;  // else rows do not begin at multiples of 16 bytes
    float sums[2][TOKENS] = {};
#pragma unroll 4
    for (int c = lane; c < whole; c += 32) {
        float w[2][AT_ONCE];
        for (int r = 0; r < 2; r++) unpack(__ldg((const uint4 *)rows[r] + c), w[r]);
        for (int t = 0; t < TOKENS; t++) {
            const float4 *inputs = (const float4 *)(x + (long long)t * width + c * AT_ONCE);
            for (int i = 0; i < AT_ONCE / 4; i++) {
                const float4 v = __ldg(inputs + i);
                for (int r = 0; r < 2; r++) {
                    const float *own = w[r] + 4 * i;
                    sums[r][t] += v.x * own[0] + v.y * own[1] + v.z * own[2] + v.w * own[3];
                }
            }
        }
    }
    for (int i = whole * AT_ONCE + lane; i < width; i += 32)
        for (int t = 0; t < TOKENS; t++)
            for (int r = 0; r < 2; r++) sums[r][t] += x[(long long)t * width + i] * number(rows[r][i]);
    for (int t = 0; t < TOKENS; t++)
        for (int r = 0; r < 2; r++) {
            float sum = sums[r][t];
            for (int far = 16; far; far /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, far);
            if (lane == 0 && first + r < num_rows) out[(long long)t * num_rows + first + r] = sum;
        }
}

#else

#define ROWS (BITS / 2)  // of a panel that a lane sees: its part of a group is ROWS times 4 bytes

// The scale of a row.
static inline __device__ float scale_of(unsigned short bits) {
#if SCALES == 1
    return wide(bits);
#else
    const float size = __uint_as_float((bits & 0x7fffu) << 13) * 0x1p112f;  // fp16's exponents begin 112 later
    return bits & 0x8000u ? -size : size;
#endif
}

// The ROWS times 4 bytes of a lane: of 8 bits quad lane / 4 of rows 4 (lane % 4) on, of 4 bits quads 2 (lane / 8), in
// the low halves, and the next one of rows 2 (lane % 8) on.
struct Part {
    unsigned words[ROWS];
};

static inline __device__ Part part_of(const unsigned char *weights, long long group, int lane) {
    Part part;
#if BITS == 8
    const uint4 all = __ldg((const uint4 *)(weights + group * 512) + lane);
    part.words[0] = all.x, part.words[1] = all.y, part.words[2] = all.z, part.words[3] = all.w;
#else
    const uint2 all = __ldg((const uint2 *)(weights + group * 256) + lane);
    part.words[0] = all.x, part.words[1] = all.y;
#endif
    return part;
}

static inline __device__ int first_row(int lane) { return BITS == 8 ? lane % 4 * 4 : lane % 8 * 2; }
static inline __device__ int first_input(int lane) { return BITS == 8 ? lane / 4 * 4 : lane / 8 * 8; }

// Weight i of a lane's row, as a whole number: of 8 bits 4 in a row, of 4 bits 8.
static inline __device__ float whole(unsigned word, int i) {
#if BITS == 8
    return (float)((int)(word >> 8 * i & 255u) - 128);
#else
    return (float)((int)(word >> (8 * (i % 4) + 4 * (i / 4)) & 15u) - 8);
#endif
}

#define INPUTS (32 / BITS)  // of a lane: 4 or 8

// Block (panel) of WARPS * 32 threads, which share out the groups: x [TOKENS, width], out [TOKENS, num_rows].
extern "C" __global__ void multiply_panels(const unsigned char *weights, const unsigned short *scales, const float *x,
                                           float *out, int num_rows, int width) {
    __shared__ float of_warps[WARPS][TOKENS][16];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, num_groups = (width + 31) / 32;
    const int row = first_row(lane), input = first_input(lane);
    float sums[TOKENS][ROWS] = {};
#pragma unroll 4
    for (int g = warp; g < num_groups; g += WARPS) {
        const long long group = (long long)blockIdx.x * num_groups + g;
        const Part part = part_of(weights, group, lane);
        float scale[ROWS];
        for (int r = 0; r < ROWS; r++) scale[r] = scale_of(scales[group * 16 + row + r]);
        for (int t = 0; t < TOKENS; t++) {
            float inputs[INPUTS];
            for (int i = 0; i < INPUTS; i++) {
                const int at = 32 * g + input + i;
                inputs[i] = at < width ? __ldg(x + (long long)t * width + at) : 0.0f;
            }
            for (int r = 0; r < ROWS; r++) {
                float sum = 0.0f;
                for (int i = 0; i < INPUTS; i++) sum += inputs[i] * whole(part.words[r], i);
                sums[t][r] += sum * scale[r];
            }
        }
    }
    for (int t = 0; t < TOKENS; t++)
        for (int r = 0; r < ROWS; r++) {
            float sum = sums[t][r];
            for (int far = 16; far >= (BITS == 8 ? 4 : 8); far /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, far);
            if (lane < (BITS == 8 ? 4 : 8)) of_warps[warp][t][row + r] = sum;
        }
    __syncthreads();
    for (int at = threadIdx.x; at < 16 * TOKENS; at += WARPS * 32) {
        const int t = at / 16, r = at % 16;
        float sum = 0.0f;
        for (int w = 0; w < WARPS; w++) sum += of_warps[w][t][r];
        if (blockIdx.x * 16 + r < num_rows) out[(long long)t * num_rows + blockIdx.x * 16 + r] = sum;
    }
}

// Block (panel) of WARPS * 32 threads: its rows as plain numbers, out [rows, width] in bf16 (KEPT 1) or fp32.
extern "C" __global__ void restore(const unsigned char *weights, const unsigned short *scales, void *out, int num_rows,
                                   int width) {
    const int lane = threadIdx.x % 32, num_groups = (width + 31) / 32;
    const int row = first_row(lane), input = first_input(lane);
    for (int g = threadIdx.x / 32; g < num_groups; g += WARPS) {
        const long long group = (long long)blockIdx.x * num_groups + g;
        const Part part = part_of(weights, group, lane);
        for (int r = 0; r < ROWS; r++) {
            const long long to = blockIdx.x * 16 + row + r;
            const float scale = scale_of(scales[group * 16 + row + r]);
            for (int i = 0; i < INPUTS; i++) {
                const int at = 32 * g + input + i;
                if (to >= num_rows || at >= width) continue;
                const float value = scale * whole(part.words[r], i);
#if KEPT == 0
                ((float *)out)[to * width + at] = value;
#else
                ((unsigned short *)out)[to * width + at] = narrow(value);
#endif
            }
        }
    }
}

#endif
