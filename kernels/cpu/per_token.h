/* The small operations of a decoder layer; kernels/per_token.py says what is computed. Compiled for each level. */
#include <math.h>

#include "level.h"
#include "mix.h"
#include "numbers.h"
#include "vectors.h"

#define SIMD _Pragma("omp simd")

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

/* 1 + e, e being e^-z. exps stops growing at 88; beyond it this is infinite, and what is divided by it leaves nothing of
   a number, and NaN of infinity. */
INLINED Floats LEVEL(divisor)(Floats z, Floats e) { return choose(z < -88, (Floats){0} + INFINITY, 1 + e); }

/* What x is divided by for GELU in its tanh form: x (1 + tanh y) / 2 = x / (1 + e^-2y). 2y goes into two parts: one
   rounding of it would show in its exponential. */
INLINED Floats LEVEL(gelu_divisor)(Floats x) {
    const Floats bound = (Floats){0} + 16; /* far beyond where the result is x or nothing */
    const Doubles wide = __builtin_convertvector(choose(x > bound, bound, choose(x < -bound, -bound, x)), Doubles);
    const Doubles z = wide * (1.5957691216057308 + 0.07135481627260025 * (wide * wide)); /* 2 sqrt(2/pi), times 0.044715 */
    const Floats rounded = __builtin_convertvector(z, Floats);
    const Floats rest = __builtin_convertvector(z - __builtin_convertvector(rounded, Doubles), Floats), e = exps(-rounded);
    return LEVEL(divisor)(rounded, e - e * rest);
}

/* gate [count] = its activation times up; count is a multiple of LANES. */
void LEVEL(gate)(int64_t activation, float *gate, const float *up, int64_t count) {
    for (int64_t i = 0; i < count; i += LANES) {
        Floats g, u;
        memcpy(&g, gate + i, sizeof g);
        memcpy(&u, up + i, sizeof u);
        g = g / (activation == SILU ? LEVEL(divisor)(g, exps(-g)) : LEVEL(gelu_divisor)(g)) * u;
        memcpy(gate + i, &g, sizeof g);
    }
}

void LEVEL(gate_multiply)(int64_t activation, const void *gate_up, int64_t type, int64_t num_tokens, int64_t width,
                          void *out) {
    enum { PIECE = 512 };
    const int64_t pieces = (width + PIECE - 1) / PIECE;
#pragma omp parallel for schedule(static) if (num_tokens * width > 1 << 15)
    for (int64_t piece = 0; piece < num_tokens * pieces; piece++) {
        const int64_t t = piece / pieces, first = piece % pieces * PIECE;
        const int64_t count = width - first < PIECE ? width - first : PIECE;
        float gate[PIECE] = {0}, up[PIECE] = {0};
        LEVEL(load)(gate_up, type, 2 * t * width + first, count, gate);
        LEVEL(load)(gate_up, type, (2 * t + 1) * width + first, count, up);
        LEVEL(gate)(activation, gate, up, (count + LANES - 1) / LANES * LANES);
        LEVEL(store)(gate, type, out, t * width + first, count);
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
