/* Few tokens times a matrix of plain numbers: weights are read once, as fast as the memory gives them. Compiled for
   each level, which says how many rows and tokens its registers hold; kernels/dense.py says what is computed. */
#include <stdlib.h>

#include "numbers.h"

#pragma GCC diagnostic ignored "-Wpsabi" /* no vector crosses a call: what takes one is inlined */

#define Floats LEVEL(Floats)
#define Words LEVEL(Words)
#define INLINED static inline __attribute__((always_inline))

typedef float Floats __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));

enum { CHUNK = 32 }; /* inputs that are taken at once */

/* The weights of a chunk: the first and the last 16 in fp32; in bf16 those of even number, and the others. */
INLINED void LEVEL(split)(const char *from, int type, Floats *first, Floats *second) {
    if (type == FP32) {
        memcpy(first, from, 64);
        memcpy(second, from + 64, 64);
    } else {
        Words both;
        memcpy(&both, from, 64);
        *first = (Floats)(both << 16);
        *second = (Floats)(both & 0xffff0000u);
    }
}

/* out[t * stride + r] of `tokens` tokens and `rows` rows. x: in chunks, split as the weights are, filled up by zeros. */
INLINED void LEVEL(tile)(int type, int rows, int tokens, const char *weights, int64_t width, const float *x,
                         float *out, int64_t stride) {
    const int64_t item = type == FP32 ? 4 : 2, x_stride = (width + CHUNK - 1) / CHUNK * CHUNK;
    Floats sums[DENSE_ROWS][DENSE_TOKENS];
    for (int r = 0; r < rows; r++)
        for (int t = 0; t < tokens; t++) sums[r][t] = (Floats){0};
    for (int64_t i = 0; i < width; i += CHUNK) {
        Floats first[DENSE_ROWS], second[DENSE_ROWS];
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++) {
            const char *from = weights + (r * width + i) * item;
            char last[128] = {0};
            if (width - i < CHUNK) from = memcpy(last, from, (width - i) * item);
            LEVEL(split)(from, type, &first[r], &second[r]);
        }
#pragma GCC unroll 4
        for (int t = 0; t < tokens; t++) {
            Floats one, other;
            memcpy(&one, x + t * x_stride + i, 64);
            memcpy(&other, x + t * x_stride + i + 16, 64);
#pragma GCC unroll 4
            for (int r = 0; r < rows; r++) sums[r][t] = second[r] * other + (first[r] * one + sums[r][t]);
        }
    }
    for (int t = 0; t < tokens; t++) {
        for (int r = 0; r < rows; r++) {
            float sum = 0;
            for (int lane = 0; lane < 16; lane++) sum += sums[r][t][lane];
            out[t * stride + r] = sum;
        }
    }
}

/* All tokens of `rows` rows. */
INLINED void LEVEL(strip)(int type, int rows, const char *weights, int64_t width, const float *x, int64_t num_tokens,
                          float *out, int64_t stride) {
    const int64_t x_stride = (width + CHUNK - 1) / CHUNK * CHUNK;
    int64_t t = 0;
    for (; t + DENSE_TOKENS <= num_tokens; t += DENSE_TOKENS)
        LEVEL(tile)(type, rows, DENSE_TOKENS, weights, width, x + t * x_stride, out + t * stride, stride);
    for (; t < num_tokens; t++)
        LEVEL(tile)(type, rows, 1, weights, width, x + t * x_stride, out + t * stride, stride);
}

INLINED void LEVEL(strips)(int type, const char *weights, int64_t num_rows, int64_t width, const float *x,
                           int64_t num_tokens, float *out) {
    const int64_t bytes = width * (type == FP32 ? 4 : 2), whole = num_rows / DENSE_ROWS * DENSE_ROWS;
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < num_rows; row += DENSE_ROWS) {
        if (row < whole) {
            LEVEL(strip)(type, DENSE_ROWS, weights + row * bytes, width, x, num_tokens, out + row, num_rows);
        } else {
            for (int64_t r = row; r < num_rows; r++)
                LEVEL(strip)(type, 1, weights + r * bytes, width, x, num_tokens, out + r, num_rows);
        }
    }
}

int64_t LEVEL(dense)(int64_t type, const void *weights, int64_t num_rows, int64_t width, const float *x,
                     int64_t num_tokens, float *out) {
    const int64_t stride = (width + CHUNK - 1) / CHUNK * CHUNK;
    float *ordered = aligned_alloc(64, (num_tokens * stride + 16) * sizeof *ordered / 64 * 64);
    if (ordered == NULL) return 1;
    for (int64_t t = 0; t < num_tokens; t++) {
        float *to = ordered + t * stride;
        memset(to, 0, stride * sizeof *to);
        for (int64_t i = 0; i < width; i++)
            to[type == FP32 ? i : i / CHUNK * CHUNK + i % 2 * 16 + i % CHUNK / 2] = x[t * width + i];
    }
    if (type == FP32)
        LEVEL(strips)(FP32, weights, num_rows, width, ordered, num_tokens, out);
    else
        LEVEL(strips)(BF16, weights, num_rows, width, ordered, num_tokens, out);
    free(ordered);
    return 0;
}

#undef Floats
#undef Words
#undef INLINED
