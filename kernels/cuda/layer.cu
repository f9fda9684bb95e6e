// What a decoder layer does to each token between its matrices; kernels/ops.py and kernels/cache_codec.py define it.
//
// Constants: KEPT, of the norm's weight (0 fp32, 1 bf16) or of the cache (2: int8 with a bf16 scale for each vector).

#define WIDEST 512  // numbers of a head

static inline __device__ float wide(unsigned short bf16) { return __uint_as_float((unsigned)bf16 << 16); }

// To the nearest bf16, ties to even.
static inline __device__ unsigned short narrow(float x) {
    const unsigned bits = __float_as_uint(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fc0;
    return (unsigned short)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

static inline __device__ float summed(float x) {
    for (int far = 16; far; far /= 2) x += __shfl_xor_sync(0xffffffffu, x, far);
    return x;
}

// Block (token), 256 threads: x [T, width] over its root mean square, times weight.
extern "C" __global__ void rms_norm(const float *x, const void *weight, float *out, int width, float eps) {
    __shared__ float of_warps[8];
    const float *own = x + (long long)blockIdx.x * width;
    float squares = 0.0f;
    for (int i = threadIdx.x; i < width; i += 256) squares += own[i] * own[i];
    squares = summed(squares);
    if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = squares;
    __syncthreads();
    float total = 0.0f;
    for (int w = 0; w < 8; w++) total += of_warps[w];
    const float factor = rsqrtf(total / width + eps);
    for (int i = threadIdx.x; i < width; i += 256) {
#if KEPT == 0
        const float scale = ((const float *)weight)[i];
#else
        const float scale = wide(((const unsigned short *)weight)[i]);
#endif
        out[(long long)blockIdx.x * width + i] = own[i] * factor * scale;
    }
}

// Keep a vector of a head in a slot of the cache; a warp does it together.
static inline __device__ void keep(const float *x, void *vectors, unsigned short *scales, long long vector, int head_dim) {
    const int lane = threadIdx.x;
#if KEPT == 0
    for (int i = lane; i < head_dim; i += 32) ((float *)vectors)[vector * head_dim + i] = x[i];
#elif KEPT == 1
    for (int i = lane; i < head_dim; i += 32) ((unsigned short *)vectors)[vector * head_dim + i] = narrow(x[i]);
#else
    float largest = 0.0f, nothing = 0.0f;
    for (int i = lane; i < head_dim; i += 32) {
        largest = fmaxf(largest, fabsf(x[i]));
        nothing += x[i] * 0.0f;  // NaN where x is not finite
    }
    for (int far = 16; far; far /= 2) largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, far));
    nothing = summed(nothing) * 0.0f;
    const unsigned short stored = narrow(fminf(largest / 127.0f, __uint_as_float(0x7c000000u)) + nothing);  // 2^121
    const float scale = wide(stored);
    for (int i = lane; i < head_dim; i += 32) {
        const float code = rintf(x[i] / scale);
        ((signed char *)vectors)[vector * head_dim + i] =
            code == code ? (signed char)fminf(fmaxf(code, -127.0f), 127.0f) : 0;
    }
    if (lane == 0) scales[vector] = stored;
#endif
}

// Block (vector of queries, then keys, then values; token), 32 threads: norms each head where there are norms (fp32 [d]),
// turns the first 2 * half numbers of queries and keys, writes queries in place and keeps keys and values in the slots.
extern "C" __global__ void turn_and_keep(float *qkv, const float *cos, const float *sin, const long long *slots,
                                         const float *query_norm, const float *key_norm, void *keys,
                                         unsigned short *key_scales, void *values, unsigned short *value_scales,
                                         int num_heads, int num_kv_heads, int head_dim, int half, float eps) {
    __shared__ float x[WIDEST], turned[WIDEST];
    const int head = blockIdx.x, lane = threadIdx.x;
    const long long token = blockIdx.y;
    const bool is_query = head < num_heads, is_value = head >= num_heads + num_kv_heads;
    float *own = qkv + (token * (num_heads + 2 * num_kv_heads) + head) * head_dim;
    const float *weight = is_value ? nullptr : is_query ? query_norm : key_norm;
    float squares = 0.0f;
    for (int i = lane; i < head_dim; i += 32) squares += own[i] * own[i];
    const float factor = weight ? rsqrtf(summed(squares) / head_dim + eps) : 1.0f;
    for (int i = lane; i < head_dim; i += 32) x[i] = weight ? own[i] * factor * weight[i] : own[i];
    __syncthreads();
    for (int i = lane; i < head_dim; i += 32) {
        turned[i] = x[i];
        if (is_value || i >= 2 * half) continue;
        const int pair = i % half;
        const float c = cos[token * half + pair], s = sin[token * half + pair];
        turned[i] = i < half ? x[i] * c - x[i + half] * s : x[i] * c + x[i - half] * s;
    }
    __syncthreads();
    if (is_query) {
        for (int i = lane; i < head_dim; i += 32) own[i] = turned[i];
    } else {
        const int kv = (head - num_heads) % num_kv_heads;
        keep(turned, is_value ? values : keys, is_value ? value_scales : key_scales, slots[token] * num_kv_heads + kv,
             head_dim);
    }
}

// Blocks of 256 threads over [T, width]: activation(gate) * up of gate and up side by side; activation 1 silu,
// 2 gelu in its tanh form, 3 gelu.
extern "C" __global__ void gate(const float *gate_up, float *out, int num_tokens, int width, int activation) {
    const long long at = (long long)blockIdx.x * 256 + threadIdx.x;
    if (at >= (long long)num_tokens * width) return;
    const float *own = gate_up + at / width * 2 * width;
    const float x = own[at % width], up = own[width + at % width];
    float found;
    if (activation == 1) {
        found = x / (1.0f + expf(-x));
    } else if (activation == 2) {
        found = 0.5f * x * (1.0f + tanhf(0.7978845608028654f * (x + 0.044715f * x * x * x)));
    } else {
        found = 0.5f * x * (1.0f + erff(x * 0.7071067811865476f));
    }
    out[at] = found * up;
}
