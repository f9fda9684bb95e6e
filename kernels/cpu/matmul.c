/* Quantise activations and multiply them by quantised weights. kernels/quantised.py says what is computed. */
#include "matmul.h"

#include <stdlib.h>
#include <string.h>

#include "level.h"

static const Panel *table(int64_t level, int64_t bits, int64_t type) {
#if defined(__x86_64__)
    if (level == 2) return panels_avx512[type == FP16][bits == 4];
    if (level == 1) return panels_avx2[type == FP16][bits == 4];
#endif
    (void)level;
    return panels_portable[type == FP16][bits == 4];
}

DECLARE(void, quantise_tile, const float *, int64_t, int64_t, int64_t, int32_t, int8_t *, float *, int32_t *);

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

/* out [num_tokens, num_rows] of x [num_tokens, width] and weights [panels, groups, 64 * bits] with their scales of a
   type. gate, where it is not NO_GATE: of 2 n rows, n being a multiple of 16, the first n go through it and are
   multiplied by the others: out [num_tokens, n]. Returns 1 where there was no memory for it. */
int64_t ollampi_quantised(int64_t level, int64_t bits, const uint8_t *weights, const uint16_t *scales, int64_t type,
                          int64_t num_rows, int64_t width, const float *x, int64_t num_tokens, int64_t gate,
                          float *out) {
    const int64_t num_groups = (width + GROUP - 1) / GROUP, groups = num_tokens * num_groups;
    const int64_t stride = gate != NO_GATE ? num_rows / 2 : num_rows, num_panels = (stride + ROWS - 1) / ROWS;
    const Matrix matrix = {weights, scales, table(level, bits, type), bits, num_rows, num_groups};
    int8_t *values = malloc(groups * (GROUP + sizeof(float) + sizeof(int32_t)) + 1);
    if (values == NULL) return 1;
    float *steps = (float *)(values + groups * GROUP);
    int32_t *offsets = (int32_t *)(steps + groups);
#pragma omp parallel
    {
#pragma omp for schedule(static)
        for (int64_t token = 0; token < num_tokens; token += TILE) {
            const int64_t count = num_tokens - token < TILE ? num_tokens - token : TILE, at = token * num_groups;
            AT_LEVEL(level, quantise_tile, x + token * width, width, num_groups, count, 1 << (bits - 1),
                     values + at * GROUP, steps + at, offsets + at);
        }
#pragma omp for schedule(static)
        for (int64_t p = 0; p < num_panels; p++) {
            for (int64_t token = 0; token < num_tokens; token += TILE) {
                const int64_t count = num_tokens - token < TILE ? num_tokens - token : TILE, at = token * num_groups;
                const Tile tile = {values + at * GROUP, steps + at, offsets + at};
                float *to = out + token * stride + p * ROWS;
                one_panel(&matrix, p, &tile, count, token == 0, to, stride);
                if (gate != NO_GATE) {
                    float up[TILE * ROWS];
                    one_panel(&matrix, num_panels + p, &tile, count, token == 0, up, ROWS);
                    for (int64_t t = 0; t < count; t++)
                        ollampi_gate(level, gate, to + t * stride, up + t * ROWS, ROWS);
                }
            }
        }
    }
    free(values);
    return 0;
}
