/* Quantise activations and multiply them by quantised weights. kernels/quantised.py says what is computed. */
#include "matmul.h"

#include <features.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "clones.h"
#include "level.h"

static const Panel *table(int64_t level, int64_t bits) {
#if defined(__x86_64__)
    if (level == 2) return panels_avx512[bits == 4];
    if (level == 1) return panels_avx2[bits == 4];
#endif
    (void)level;
    return panels_portable[bits == 4];
}

/* x [count, width] -> values from -127 to 127 and what else `Tile` wants, for weights that have `middle` added. */
CLONES static void quantise_tile(const float *x, int64_t width, int64_t num_groups, int64_t count, int32_t middle,
                                 int8_t *values, float *scales, int32_t *offsets) {
    for (int64_t t = 0; t < count; t++) {
        for (int64_t g = 0; g < num_groups; g++) {
            const float *from = x + t * width + g * GROUP;
            float filled[GROUP] = {0}; /* a last group that is not full */
            if ((g + 1) * GROUP > width) from = memcpy(filled, from, (width - g * GROUP) * sizeof *x);
            float largest = 0, poison = 0; /* poison: 0, or NaN where a number is not finite */
#pragma omp simd reduction(max : largest) reduction(+ : poison)
            for (int i = 0; i < GROUP; i++) {
                const float size = fabsf(from[i]);
                largest = size > largest ? size : largest;
                poison += from[i] * 0.0f;
            }
            const float factor = largest > SMALLEST ? 127 / largest : 0;
            int8_t found[GROUP];
            int32_t sum = 0;
            for (int i = 0; i < GROUP; i++) {
                const float scaled = rintf(from[i] * factor);
                const int32_t value = scaled >= -127 && scaled <= 127 ? (int32_t)scaled : 0;
                found[i] = (int8_t)value;
                sum += value;
            }
            int8_t *to = values + (g * GROUP * count + 4 * t);
            for (int quad = 0; quad < 8; quad++) memcpy(to + 4 * quad * count, found + 4 * quad, 4);
            scales[g * count + t] = (factor > 0 ? largest / 127 : 0) + poison;
            offsets[g * count + t] = -middle * sum;
        }
    }
}

typedef struct {
    const uint8_t *weights;
    const uint16_t *scales;
    const Panel *panels;
    int64_t bits, num_rows, num_groups;
} Matrix;

/* Rows 16 p .. of a matrix times a tile; what lies behind the last row is not set. */
static void one_panel(const Matrix *m, int64_t p, const Tile *x, int64_t count, int first, float *out, int64_t stride) {
    const uint8_t *weights = m->weights + p * m->num_groups * 64 * m->bits;
    const uint16_t *scales = m->scales + p * m->num_groups * ROWS;
    const int64_t rows = m->num_rows - p * ROWS;
    if (rows >= ROWS) {
        m->panels[count - 1](weights, scales, x, first, m->num_groups, out, stride);
        return;
    }
    float whole[TILE * ROWS];
    m->panels[count - 1](weights, scales, x, first, m->num_groups, whole, ROWS);
    for (int64_t t = 0; t < count; t++) memcpy(out + t * stride, whole + t * ROWS, rows * sizeof *out);
}

/* out [num_tokens, num_rows] of x [num_tokens, width] and weights [panels, groups, 64 * bits] with their scales. gated:
   of 2 n rows, n being a multiple of 16, the first n go through SiLU and are multiplied by the others: out [num_tokens, n].
   Returns 1 where there was no memory for it. */
int64_t ollampi_quantised(int64_t level, int64_t bits, const uint8_t *weights, const uint16_t *scales, int64_t num_rows,
                          int64_t width, const float *x, int64_t num_tokens, int64_t gated, float *out) {
    const int64_t num_groups = (width + GROUP - 1) / GROUP, groups = num_tokens * num_groups;
    const int64_t stride = gated ? num_rows / 2 : num_rows, num_panels = (stride + ROWS - 1) / ROWS;
    const Matrix matrix = {weights, scales, table(level, bits), bits, num_rows, num_groups};
    int8_t *values = malloc(groups * (GROUP + sizeof(float) + sizeof(int32_t)) + 1);
    if (values == NULL) return 1;
    float *steps = (float *)(values + groups * GROUP);
    int32_t *offsets = (int32_t *)(steps + groups);
#pragma omp parallel
    {
#pragma omp for schedule(static)
        for (int64_t token = 0; token < num_tokens; token += TILE) {
            const int64_t count = num_tokens - token < TILE ? num_tokens - token : TILE, at = token * num_groups;
            quantise_tile(x + token * width, width, num_groups, count, 1 << (bits - 1), values + at * GROUP, steps + at,
                          offsets + at);
        }
#pragma omp for schedule(static)
        for (int64_t p = 0; p < num_panels; p++) {
            for (int64_t token = 0; token < num_tokens; token += TILE) {
                const int64_t count = num_tokens - token < TILE ? num_tokens - token : TILE, at = token * num_groups;
                const Tile tile = {values + at * GROUP, steps + at, offsets + at};
                float *to = out + token * stride + p * ROWS;
                one_panel(&matrix, p, &tile, count, token == 0, to, stride);
                if (gated) {
                    float up[TILE * ROWS];
                    one_panel(&matrix, num_panels + p, &tile, count, token == 0, up, ROWS);
                    for (int64_t t = 0; t < count; t++) ollampi_gate(level, to + t * stride, up + t * ROWS, ROWS);
                }
            }
        }
    }
    free(values);
    return 0;
}
