/* Quantise activations and multiply them by quantised weights. kernels/quantised.py says what is computed. */
#include "matmul.h"

#include <features.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "clones.h"

static const Panel *table(int64_t level, int64_t bits) {
#if defined(__x86_64__)
    if (level == 2) return panels_avx512[bits == 4];
    if (level == 1) return panels_avx2[bits == 4];
#endif
    (void)level;
    return panels_portable[bits == 4];
}

/* x [width] -> values [num_groups, 32] from -127 to 127, and what `Activations` wants of each group. */
CLONES static void quantise_row(const float *x, int64_t width, int64_t num_groups, int8_t *values, float *scales,
                                int32_t middle, int32_t *offsets) {
    for (int64_t g = 0; g < num_groups; g++, x += GROUP, values += GROUP) {
        float filled[GROUP] = {0}; /* a last group that is not full */
        const float *from = x;
        if ((g + 1) * GROUP > width) from = memcpy(filled, x, (width - g * GROUP) * sizeof *x);
        float largest = 0, poison = 0; /* poison: 0, or NaN where a number is not finite */
        for (int i = 0; i < GROUP; i++) {
            const float size = fabsf(from[i]);
            largest = size > largest ? size : largest;
            poison += from[i] * 0.0f;
        }
        const float factor = largest > SMALLEST ? 127 / largest : 0;
        int32_t sum = 0;
        for (int i = 0; i < GROUP; i++) {
            const float scaled = rintf(from[i] * factor);
            const int32_t value = scaled >= -127 && scaled <= 127 ? (int32_t)scaled : 0;
            values[i] = (int8_t)value;
            sum += value;
        }
        scales[g] = (factor > 0 ? largest / 127 : 0) + poison;
        offsets[g] = -middle * sum;
    }
}

/* Some tokens of one panel of which `rows` rows are wanted; the rest is only filled up. */
static void some_tokens(Panel panel, const uint8_t *weights, const uint16_t *scales, const Activations *x, int64_t token,
                        int64_t count, int64_t num_groups, int64_t rows, float *out, int64_t stride) {
    if (rows >= ROWS) {
        panel(weights, scales, x, token, num_groups, out, stride);
        return;
    }
    float whole[TILE * ROWS];
    panel(weights, scales, x, token, num_groups, whole, ROWS);
    for (int64_t t = 0; t < count; t++) memcpy(out + t * stride, whole + t * ROWS, rows * sizeof *out);
}

/* out [num_tokens, num_rows] of x [num_tokens, width] and weights [panels, groups, 64 * bits] with their scales.
   Returns 1 where there was no memory for it. */
int64_t ollampi_quantised(int64_t level, int64_t bits, const uint8_t *weights, const uint16_t *scales, int64_t num_rows,
                          int64_t width, const float *x, int64_t num_tokens, float *out) {
    const int64_t num_panels = (num_rows + ROWS - 1) / ROWS, num_groups = (width + GROUP - 1) / GROUP;
    const int64_t groups = num_tokens * num_groups;
    int8_t *values = malloc(groups * (GROUP + sizeof(float) + sizeof(int32_t)) + 1);
    if (values == NULL) return 1;
    float *steps = (float *)(values + groups * GROUP);
    int32_t *offsets = (int32_t *)(steps + groups);
    const Activations activations = {values, steps, offsets};
    const Panel *panels = table(level, bits);
#pragma omp parallel
    {
#pragma omp for schedule(static)
        for (int64_t t = 0; t < num_tokens; t++)
            quantise_row(x + t * width, width, num_groups, values + t * num_groups * GROUP, steps + t * num_groups,
                         1 << (bits - 1), offsets + t * num_groups);
#pragma omp for schedule(static)
        for (int64_t p = 0; p < num_panels; p++) {
            for (int64_t token = 0; token < num_tokens; token += TILE) {
                const int64_t count = num_tokens - token < TILE ? num_tokens - token : TILE;
                some_tokens(panels[count - 1], weights + p * num_groups * 64 * bits, scales + p * num_groups * ROWS,
                            &activations, token, count, num_groups, num_rows - p * ROWS,
                            out + token * num_rows + p * ROWS, num_rows);
            }
        }
    }
    free(values);
    return 0;
}
