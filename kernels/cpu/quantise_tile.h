/* Round activations for a product with quantised weights; matmul.h says how they lie. Compiled for each level. */
#include <math.h>

#include "matmul.h"

/* x [32] -> whole numbers from -127 to 127 that a scale belongs to, NaN where a number is not finite; their sum. */
static inline int32_t LEVEL(quantise_group)(const float *x, int8_t *values, float *scale) {
    uint32_t bits[GROUP], most = 0; /* without the sign bits grow with the number; infinity and NaN are the largest */
    memcpy(bits, x, sizeof bits);
    for (int i = 0; i < GROUP; i++) {
        const uint32_t size = bits[i] & 0x7fffffffu;
        most = size > most ? size : most;
    }
    if (most >= 0x7f800000u) {
        memset(values, 0, GROUP);
        *scale = NAN;
        return 0;
    }
    float largest;
    memcpy(&largest, &most, sizeof largest);
    const float factor = largest > SMALLEST ? 127 / largest : 0;
    int32_t sum = 0;
    for (int i = 0; i < GROUP; i++) {
        const int32_t value = (int32_t)rintf(x[i] * factor);
        values[i] = (int8_t)value;
        sum += value;
    }
    *scale = factor > 0 ? largest / 127 : 0;
    return sum;
}

/* x [count, width] -> what `Tile` wants, for weights that have `middle` added. */
void LEVEL(quantise_tile)(const float *x, int64_t width, int64_t num_groups, int64_t count, int32_t middle,
                          int8_t *values, float *scales, int32_t *offsets) {
    for (int64_t t = 0; t < count; t++) {
        for (int64_t g = 0; g < num_groups; g++) {
            const float *from = x + t * width + g * GROUP;
            float filled[GROUP] = {0}; /* a last group that is not full */
            if ((g + 1) * GROUP > width) from = memcpy(filled, from, (width - g * GROUP) * sizeof *x);
            int8_t found[GROUP];
            offsets[g * count + t] = -middle * LEVEL(quantise_group)(from, found, scales + g * count + t);
            int8_t *to = values + (g * GROUP * count + 4 * t);
            for (int quad = 0; quad < GROUP / 4; quad++) memcpy(to + 4 * quad * count, found + 4 * quad, 4);
        }
    }
}
