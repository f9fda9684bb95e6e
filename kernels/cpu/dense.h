/* Few tokens times a matrix of plain numbers: weights are read once, as fast as the memory gives them. Compiled for
   each level, which says how many numbers a register holds, and how many rows and tokens all of them; kernels/dense.py
   says what is computed. */
#include <stdlib.h>

#include "numbers.h"
#include "vectors.h"

enum { CHUNK = 2 * LANES }; /* inputs that are taken at once */

/* The weights of a chunk: its first and its second half in fp32; in bf16 those of even number, and the others. */
INLINED void LEVEL(split)(const char *from, int type, Floats *first, Floats *second) {
    if (type == FP32) {
        memcpy(first, from, sizeof *first);
        memcpy(second, from + sizeof *first, sizeof *second);
    } else {
        Words both;
        memcpy(&both, from, sizeof both);
        *first = (Floats)(both << 16);
        *second = (Floats)(both & 0xffff0000u);
    }
}

/* Add the products of one chunk of `rows` rows, row_bytes apart, and of `tokens` tokens, x_stride apart, to sums. The
   same place of the rows behind these is asked for: they come next. */
INLINED void LEVEL(chunk)(int type, int rows, int tokens, const char *weights, int64_t row_bytes, const float *x,
                          int64_t x_stride, Floats sums[DENSE_ROWS][DENSE_TOKENS][2]) {
    Floats first[DENSE_ROWS], second[DENSE_ROWS];
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++) {
        LEVEL(split)(weights + r * row_bytes, type, &first[r], &second[r]);
        __builtin_prefetch(weights + (rows + r) * row_bytes);
        if (4 * CHUNK > 64 && type == FP32) __builtin_prefetch(weights + (rows + r) * row_bytes + 64);
    }
#pragma GCC unroll 4
    for (int t = 0; t < tokens; t++) {
        Floats one, other;
        memcpy(&one, x + t * x_stride, sizeof one);
        memcpy(&other, x + t * x_stride + LANES, sizeof other);
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++) {
            sums[r][t][0] += first[r] * one;
            sums[r][t][1] += second[r] * other;
        }
    }
}

/* out[t * stride + r] of `tokens` tokens and `rows` rows. x: in chunks, split as the weights are, filled up by zeros. */
INLINED void LEVEL(tile)(int type, int rows, int tokens, const char *weights, int64_t width, const float *x,
                         float *out, int64_t stride) {
    const int64_t item = type == FP32 ? 4 : 2, whole = width / CHUNK * CHUNK;
    const int64_t x_stride = (width + CHUNK - 1) / CHUNK * CHUNK;
    Floats sums[DENSE_ROWS][DENSE_TOKENS][2];
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int t = 0; t < tokens; t++) sums[r][t][0] = sums[r][t][1] = (Floats){0};
    for (int64_t i = 0; i < whole; i += CHUNK)
        LEVEL(chunk)(type, rows, tokens, weights + i * item, width * item, x + i, x_stride, sums);
    if (whole < width) {
        char last[2 * DENSE_ROWS][4 * CHUNK] = {{0}};
        for (int r = 0; r < rows; r++) memcpy(last[r], weights + (r * width + whole) * item, (width - whole) * item);
        LEVEL(chunk)(type, rows, tokens, last[0], sizeof last[0], x + whole, x_stride, sums);
    }
#pragma GCC unroll 4
    for (int t = 0; t < tokens; t++) {
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++) {
            const Floats both = sums[r][t][0] + sums[r][t][1];
            float sum = 0;
            for (int lane = 0; lane < LANES; lane++) sum += both[lane];
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

/* One row after the other is what memory gives fastest; several at a time save loads of x where there are many tokens. */
INLINED void LEVEL(strips)(int type, const char *weights, int64_t num_rows, int64_t width, const float *x,
                           int64_t num_tokens, float *out) {
    const int64_t bytes = width * (type == FP32 ? 4 : 2), rows = num_tokens >= DENSE_TOKENS ? DENSE_ROWS : 1;
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < num_rows; row += rows) {
        if (rows > 1 && row + rows <= num_rows) {
            LEVEL(strip)(type, DENSE_ROWS, weights + row * bytes, width, x, num_tokens, out + row, num_rows);
        } else {
            for (int64_t r = row; r < num_rows && r < row + rows; r++)
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
            to[type == FP32 ? i : i / CHUNK * CHUNK + i % 2 * LANES + i % CHUNK / 2] = x[t * width + i];
    }
    if (type == FP32)
        LEVEL(strips)(FP32, weights, num_rows, width, ordered, num_tokens, out);
    else
        LEVEL(strips)(BF16, weights, num_rows, width, ordered, num_tokens, out);
    free(ordered);
    return 0;
}
