// Attention of single tokens over the blocks of the cache; kernels/device_attention.py says what its twin is.
//
// Constants: KEPT, how the cache keeps vectors (0 fp32, 1 bf16, 2 int8 with a bf16 scale each); PAIRS, of 64 numbers of a
// head, rounded up; GROUP, how many query heads of one KV head a block serves.

#define WARPS 4
#define WIDEST (64 * PAIRS)
#define NOTHING (-__int_as_float(0x7f800000))  // minus infinity: the top of no scores

static inline __device__ float wide(unsigned short bf16) { return __uint_as_float((unsigned)bf16 << 16); }

// Two neighbours of a vector of the cache, without its scale.
static inline __device__ float2 pair_at(const void *vectors, long long at) {
#if KEPT == 0
    return *(const float2 *)((const float *)vectors + at);
#elif KEPT == 1
    const unsigned both = *(const unsigned *)((const unsigned short *)vectors + at);
    return make_float2(__uint_as_float(both << 16), __uint_as_float(both & 0xffff0000u));
#else
    const char2 both = *(const char2 *)((const signed char *)vectors + at);
    return make_float2((float)both.x, (float)both.y);
#endif
}

static inline __device__ float summed(float x) {
    for (int far = 16; far; far /= 2) x += __shfl_xor_sync(0xffffffffu, x, far);
    return x;
}

// Block (kv head and pass over its query heads, token, part of what the token sees), WARPS * 32 threads. Writes of each
// part the mix of values [T, parts, H, d], not divided yet, the largest score and the sum of weights [T, parts, H].
extern "C" __global__ void look(const float *queries, int query_stride, const void *keys,
                                const unsigned short *key_scales, const void *values,
                                const unsigned short *value_scales, const int *tables, const int *seen,
                                const int *first_heads, float *mixed, float *tops, float *sums, int num_heads,
                                int num_kv_heads, int head_dim, int block_size, int table_width, int window,
                                float scale, float cap) {
    __shared__ float all_mixes[WARPS][GROUP][WIDEST], all_tops[WARPS][GROUP], all_sums[WARPS][GROUP];
    const int kv = blockIdx.x % num_kv_heads, pass = blockIdx.x / num_kv_heads, token = blockIdx.y;
    const int first = first_heads[kv] + pass * GROUP, heads = min(GROUP, first_heads[kv + 1] - first);
    if (heads <= 0) return;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int end = seen[token], begin = window ? max(0, end - window) : 0;
    const int each = (end - begin + gridDim.z - 1) / gridDim.z;
    const int from = begin + blockIdx.z * each, to = min(end, from + each);
    float query[GROUP][2 * PAIRS], mix[GROUP][2 * PAIRS], top[GROUP], sum[GROUP];
    for (int h = 0; h < GROUP; h++) {
        const float *own = queries + (long long)token * query_stride + (long long)(first + h) * head_dim;
        for (int i = 0; i < PAIRS; i++) {
            const int at = 64 * i + 2 * lane;
            const bool there = h < heads && at < head_dim;
            query[h][2 * i] = there ? own[at] : 0.0f;
            query[h][2 * i + 1] = there ? own[at + 1] : 0.0f;
            mix[h][2 * i] = mix[h][2 * i + 1] = 0.0f;
        }
        top[h] = NOTHING;
        sum[h] = 0.0f;
    }
    for (int position = from + warp; position < to; position += WARPS) {
        const int block = tables[(long long)token * table_width + position / block_size];
        const long long vector = ((long long)block * block_size + position % block_size) * num_kv_heads + kv;
        float2 key[PAIRS], value[PAIRS];
        for (int i = 0; i < PAIRS; i++) {
            const int at = 64 * i + 2 * lane;
            key[i] = value[i] = make_float2(0.0f, 0.0f);
            if (at < head_dim) {
                key[i] = pair_at(keys, vector * head_dim + at);
                value[i] = pair_at(values, vector * head_dim + at);
            }
        }
        const float key_scale = KEPT == 2 ? scale * wide(key_scales[vector]) : scale;
        const float value_scale = KEPT == 2 ? wide(value_scales[vector]) : 1.0f;
        for (int h = 0; h < GROUP; h++) {
            float score = 0.0f;
            for (int i = 0; i < PAIRS; i++) score += query[h][2 * i] * key[i].x + query[h][2 * i + 1] * key[i].y;
            score = summed(score) * key_scale;
            if (cap > 0.0f) score = cap * tanhf(score / cap);
            const float higher = fmaxf(top[h], score);
            const float kept = top[h] == higher ? 1.0f : expf(top[h] - higher), weight = expf(score - higher);
            const float share = weight * value_scale;
            top[h] = higher;
            sum[h] = sum[h] * kept + weight;
            for (int i = 0; i < PAIRS; i++) {
                mix[h][2 * i] = mix[h][2 * i] * kept + share * value[i].x;
                mix[h][2 * i + 1] = mix[h][2 * i + 1] * kept + share * value[i].y;
            }
        }
    }
    for (int h = 0; h < GROUP; h++) {
        for (int i = 0; i < PAIRS; i++) {
            all_mixes[warp][h][64 * i + 2 * lane] = mix[h][2 * i];
            all_mixes[warp][h][64 * i + 2 * lane + 1] = mix[h][2 * i + 1];
        }
        if (lane == 0) {
            all_tops[warp][h] = top[h];
            all_sums[warp][h] = sum[h];
        }
    }
    __syncthreads();
    for (int at = threadIdx.x; at < heads * head_dim; at += WARPS * 32) {
        const int h = at / head_dim, i = at % head_dim;
        const long long place = ((long long)token * gridDim.z + blockIdx.z) * num_heads + first + h;
        float highest = NOTHING, total = 0.0f, weight = 0.0f;
        for (int w = 0; w < WARPS; w++) highest = fmaxf(highest, all_tops[w][h]);
        for (int w = 0; w < WARPS; w++) {
            const float factor = all_tops[w][h] == NOTHING && all_sums[w][h] == 0.0f ? 0.0f : expf(all_tops[w][h] - highest);
            total += factor * all_mixes[w][h][i];
            weight += factor * all_sums[w][h];
        }
        mixed[place * head_dim + i] = total;
        if (i == 0) {
            tops[place] = highest;
            sums[place] = weight;
        }
    }
}

// Block (head, token): the mix [T, H, d] of all parts.
extern "C" __global__ void join(const float *mixed, const float *tops, const float *sums, float *out, int parts,
                                int num_heads, int head_dim) {
    const long long head = blockIdx.x, token = blockIdx.y;
    float highest = NOTHING, weight = 0.0f;
    for (int p = 0; p < parts; p++) highest = fmaxf(highest, tops[(token * parts + p) * num_heads + head]);
    for (int p = 0; p < parts; p++) {
        const long long place = (token * parts + p) * num_heads + head;
        if (sums[place] != 0.0f) weight += sums[place] * expf(tops[place] - highest);
    }
    for (int i = threadIdx.x; i < head_dim; i += blockDim.x) {
        float total = 0.0f;
        for (int p = 0; p < parts; p++) {
            const long long place = (token * parts + p) * num_heads + head;
            if (sums[place] != 0.0f) total += mixed[place * head_dim + i] * expf(tops[place] - highest);
        }
        out[(token * num_heads + head) * head_dim + i] = total / weight;
    }
}
