/* The small operations of a decoder layer; kernels/per_token.py says what is computed. Compiled for each level. */
#include <math.h>
#include <stdlib.h>

#include "mix.h"
#include "numbers.h"

#define SIMD _Pragma("omp simd")

/* e^x within 2^-22, by the steps of kernels/elementary.py; arguments beyond -87 and 88 count as these, NaN stays. */
static inline float LEVEL(expf)(float x) {
    x = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
    const float shifted = x * 1.44269504f + 12582912.0f; /* 1.5 * 2^23: the sum ends in the rounded exponent */
    const float exponent = shifted - 12582912.0f;
    const float rest = (x - exponent * 0.693359375f) - exponent * -2.12194440e-4f;
    float p = 1.0f / 5040;
    p = p * rest + 1.0f / 720;
    p = p * rest + 1.0f / 120;
    p = p * rest + 1.0f / 24;
    p = p * rest + 1.0f / 6;
    p = p * rest + 0.5f;
    p = p * rest + 1.0f;
    p = p * rest + 1.0f;
    uint32_t bits;
    memcpy(&bits, &shifted, sizeof bits);
    bits = (bits + 127) << 23; /* 2^exponent: what lies above the exponent is shifted out */
    float power;
    memcpy(&power, &bits, sizeof power);
    return p * power;
}

static inline void LEVEL(load)(const void *from, int64_t type, int64_t first, int64_t count, float *to) {
    if (type == FP32) {
        memcpy(to, (const float *)from + first, count * sizeof *to);
    } else {
        const uint16_t *x = (const uint16_t *)from + first;
        SIMD for (int64_t i = 0; i < count; i++) to[i] = from_bf16(x[i]);
    }
}

static inline void LEVEL(store)(const float *from, int64_t type, void *to, int64_t first, int64_t count) {
    if (type == FP32) {
        memcpy((float *)to + first, from, count * sizeof *from);
    } else {
        uint16_t *x = (uint16_t *)to + first;
        SIMD for (int64_t i = 0; i < count; i++) x[i] = to_bf16(from[i]);
    }
}

static inline float LEVEL(dot)(const float *a, const float *b, int64_t count) {
    float sum = 0;
    _Pragma("omp simd reduction(+ : sum)") for (int64_t i = 0; i < count; i++) sum = a[i] * b[i] + sum;
    return sum;
}

void LEVEL(rms_norm)(const float *x, const void *weight, int64_t type, float eps, int64_t num_tokens, int64_t width,
                     float *out) {
#pragma omp parallel for schedule(static) if (num_tokens * width > 1 << 16)
    for (int64_t t = 0; t < num_tokens; t++) {
        const float *from = x + t * width;
        float *to = out + t * width;
        const float scale = 1 / sqrtf(LEVEL(dot)(from, from, width) / (float)width + eps);
        if (type == FP32) {
            const float *w = weight;
            SIMD for (int64_t i = 0; i < width; i++) to[i] = from[i] * scale * w[i];
        } else {
            const uint16_t *w = weight;
            SIMD for (int64_t i = 0; i < width; i++) to[i] = from[i] * scale * from_bf16(w[i]);
        }
    }
}

void LEVEL(silu_multiply)(const void *gate_up, int64_t type, int64_t num_tokens, int64_t width, void *out) {
    enum { PIECE = 512 };
    const int64_t pieces = (width + PIECE - 1) / PIECE;
#pragma omp parallel for schedule(static) if (num_tokens * width > 1 << 15)
    for (int64_t piece = 0; piece < num_tokens * pieces; piece++) {
        const int64_t t = piece / pieces, first = piece % pieces * PIECE;
        const int64_t count = width - first < PIECE ? width - first : PIECE;
        float gate[PIECE], up[PIECE];
        LEVEL(load)(gate_up, type, 2 * t * width + first, count, gate);
        LEVEL(load)(gate_up, type, (2 * t + 1) * width + first, count, up);
        SIMD for (int64_t i = 0; i < count; i++) up[i] *= gate[i] / (1 + LEVEL(expf)(-gate[i]));
        LEVEL(store)(up, type, out, t * width + first, count);
    }
}

/* Turn x [d] by the angles whose cos and sin are [d/2]. */
static inline void LEVEL(rotate)(float *x, const float *cos, const float *sin, int64_t half) {
    SIMD for (int64_t i = 0; i < half; i++) {
        const float first = x[i], second = x[half + i];
        x[i] = first * cos[i] - second * sin[i];
        x[half + i] = second * cos[i] + first * sin[i];
    }
}

/* Keep a vector [d] in the cache, as kernels/cache_codec.py defines 8 bits. */
static inline void LEVEL(keep)(const float *x, const Kept *kept, int64_t type, int64_t vector, int64_t size) {
    if (type != INT8) {
        LEVEL(store)(x, type, kept->vectors, vector * size, size);
        return;
    }
    float largest = 0, poison = 0; /* poison: 0, or NaN where a number is not finite */
    for (int64_t i = 0; i < size; i++) {
        const float magnitude = fabsf(x[i]);
        largest = magnitude > largest ? magnitude : largest;
        poison += x[i] * 0.0f;
    }
    float scale = largest / 127;
    scale = scale > 0x1p121f ? 0x1p121f : scale;
    const uint16_t rounded = to_bf16(scale + poison);
    const float divisor = from_bf16(rounded);
    int8_t *codes = (int8_t *)kept->vectors + vector * size;
    for (int64_t i = 0; i < size; i++) {
        const float code = rintf(x[i] / divisor);
        codes[i] = (int8_t)(code >= 127 ? 127 : code <= -127 ? -127 : code == code ? code : 0);
    }
    kept->scales[vector] = rounded;
}

static inline void LEVEL(recall)(const Kept *kept, int64_t type, int64_t vector, int64_t size, float *x) {
    if (type != INT8) {
        LEVEL(load)(kept->vectors, type, vector * size, size, x);
        return;
    }
    const int8_t *codes = (const int8_t *)kept->vectors + vector * size;
    const float scale = from_bf16(kept->scales[vector]);
    SIMD for (int64_t i = 0; i < size; i++) x[i] = (float)codes[i] * scale;
}

/* Rotate a token's queries and keys in place and keep its keys and values. */
static inline void LEVEL(enter)(const Mix *mix, int64_t layer, void *qkv, int64_t type, int64_t token, float *row) {
    const int64_t size = mix->head_dim, heads = mix->num_heads, kv_heads = mix->num_kv_heads;
    const int64_t width = (heads + 2 * kv_heads) * size, half = size / 2;
    const float *cos = mix->cos + token * half, *sin = mix->sin + token * half;
    LEVEL(load)(qkv, type, token * width, width, row);
    for (int64_t h = 0; h < heads + kv_heads; h++) LEVEL(rotate)(row + h * size, cos, sin, half);
    LEVEL(store)(row, type, qkv, token * width, heads * size);
    const int64_t vector = (layer * mix->num_slots + mix->slots[token]) * kv_heads;
    for (int64_t k = 0; k < kv_heads; k++) {
        LEVEL(keep)(row + (heads + k) * size, &mix->keys, mix->kept, vector + k, size);
        LEVEL(keep)(row + (heads + kv_heads + k) * size, &mix->values, mix->kept, vector + k, size);
    }
}

enum { TILE_POSITIONS = 32 };

/* What the query heads [first, last) of one token see of one KV head, over the blocks of its sequence. The sum of
   weights is kept relative to the largest score so far: Milakov and Gimelshein, "Online normalizer calculation for
   softmax", 2018. buffer: (2 heads + 2 TILE_POSITIONS) d + 2 heads numbers. */
static inline void LEVEL(attend)(const Mix *mix, int64_t layer, const void *qkv, int64_t type, const Row *row,
                                 int64_t kv_head, float *buffer, float *out) {
    const int64_t size = mix->head_dim, first = mix->first_heads[kv_head];
    const int64_t heads = mix->first_heads[kv_head + 1] - first;
    const int64_t width = (mix->num_heads + 2 * mix->num_kv_heads) * size;
    float *query = buffer, *mixed = query + heads * size, *keys = mixed + heads * size;
    float *values = keys + TILE_POSITIONS * size, *largest = values + TILE_POSITIONS * size, *sums = largest + heads;
    float scores[TILE_POSITIONS];
    const float factor = 1 / sqrtf((float)size);
    LEVEL(load)(qkv, type, row->token * width + first * size, heads * size, query);
    SIMD for (int64_t i = 0; i < heads * size; i++) query[i] *= factor;
    memset(mixed, 0, heads * size * sizeof *mixed);
    for (int64_t h = 0; h < heads; h++) {
        largest[h] = -INFINITY;
        sums[h] = 0;
    }
    const int64_t *blocks = mix->blocks + row->first_block;
    for (int64_t begin = 0; begin < row->length; begin += TILE_POSITIONS) {
        const int64_t count = row->length - begin < TILE_POSITIONS ? row->length - begin : TILE_POSITIONS;
        for (int64_t p = 0; p < count; p++) {
            const int64_t position = begin + p;
            const int64_t slot = blocks[position / mix->block_size] * mix->block_size + position % mix->block_size;
            const int64_t vector = (layer * mix->num_slots + slot) * mix->num_kv_heads + kv_head;
            LEVEL(recall)(&mix->keys, mix->kept, vector, size, keys + p * size);
            LEVEL(recall)(&mix->values, mix->kept, vector, size, values + p * size);
        }
        for (int64_t h = 0; h < heads; h++) {
            float top = largest[h], sum = 0, *to = mixed + h * size;
            for (int64_t p = 0; p < count; p++) {
                scores[p] = LEVEL(dot)(query + h * size, keys + p * size, size);
                top = scores[p] > top ? scores[p] : top;
            }
            const float shrink = LEVEL(expf)(largest[h] - top);
            _Pragma("omp simd reduction(+ : sum)") for (int64_t p = 0; p < count; p++) {
                scores[p] = LEVEL(expf)(scores[p] - top);
                sum += scores[p];
            }
            if (top > largest[h]) {
                SIMD for (int64_t i = 0; i < size; i++) to[i] *= shrink;
                sums[h] *= shrink;
                largest[h] = top;
            }
            sums[h] += sum;
            for (int64_t p = 0; p < count; p++) {
                const float weight = scores[p], *value = values + p * size;
                SIMD for (int64_t i = 0; i < size; i++) to[i] = weight * value[i] + to[i];
            }
        }
    }
    for (int64_t h = 0; h < heads; h++) {
        const float share = 1 / sums[h], *from = mixed + h * size;
        float *to = out + (row->token * mix->num_heads + first + h) * size;
        SIMD for (int64_t i = 0; i < size; i++) to[i] = from[i] * share;
    }
}

int64_t LEVEL(mix)(const Mix *mix, int64_t layer, void *qkv, int64_t type, float *out) {
    const int64_t kv_heads = mix->num_kv_heads, units = mix->num_rows * kv_heads;
    int64_t most_heads = 0, failed = 0;
    for (int64_t k = 0; k < kv_heads; k++) {
        const int64_t heads = mix->first_heads[k + 1] - mix->first_heads[k];
        most_heads = heads > most_heads ? heads : most_heads;
    }
    const int64_t of_row = (mix->num_heads + 2 * kv_heads) * mix->head_dim;
    const int64_t of_unit = (2 * most_heads + 2 * TILE_POSITIONS) * mix->head_dim + 2 * most_heads;
#pragma omp parallel if (mix->num_tokens + mix->num_positions > 64)
    {
        float *buffer = malloc((of_row > of_unit ? of_row : of_unit) * sizeof *buffer);
        if (buffer == NULL) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp for schedule(static)
        for (int64_t t = 0; t < mix->num_tokens; t++)
            if (buffer != NULL) LEVEL(enter)(mix, layer, qkv, type, t, buffer);
#pragma omp for schedule(dynamic)
        for (int64_t u = 0; u < units; u++)
            if (buffer != NULL)
                LEVEL(attend)(mix, layer, qkv, type, &mix->rows[u / kv_heads], u % kv_heads, buffer, out);
        free(buffer);
    }
    return failed;
}
