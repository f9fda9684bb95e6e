/* Quantise weights. kernels/quantised.py says what is computed; matmul.h defines the layout. */
#include "matmul.h"

#include <math.h>
#include <string.h>

#include "clones.h"

static inline uint16_t bf16(float x) { /* to the nearest, ties to even; x is finite */
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static inline float from_bf16(uint16_t upper) {
    const uint32_t bits = (uint32_t)upper << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static inline float whole(float x, float scale, float low, float high) {
    const float number = rintf(x / scale);
    return number < low ? low : number > high ? high : number;
}

/* The scale of largest / divisors[i] that leaves the least squared error; `numbers` are the weights over it. */
static inline uint16_t best_scale(const float *x, float largest, const float *divisors, int64_t num_divisors, float low,
                                  float high, float *numbers) {
    uint16_t best = 0;
    float least = INFINITY;
    for (int64_t d = 0; d < num_divisors; d++) {
        const uint16_t scale = bf16(largest / divisors[d]);
        const float exact = from_bf16(scale);
        float error = 0, tried[GROUP];
        if (exact == 0 || isinf(exact)) continue;
        for (int i = 0; i < GROUP; i++) tried[i] = whole(x[i], exact, low, high);
        for (int i = 0; i < GROUP; i++) {
            const float off = (tried[i] * exact - x[i]) / largest; /* squares of huge numbers are beyond fp32 */
            error += off * off;
        }
        if (error < least) {
            least = error;
            best = scale;
            memcpy(numbers, tried, sizeof tried);
        }
    }
    return best;
}

/* rows [num_panels * 16, num_groups * 32] of finite numbers -> weights [num_panels, num_groups, 64 * bits] and scales
   [num_panels, num_groups, 16]. Numbers lie from -high (8 bits) or -8 (4 bits) to high. */
CLONES void ollampi_quantise_weights(const float *rows, int64_t bits, int64_t num_panels, int64_t num_groups,
                                     const float *divisors, int64_t num_divisors, uint8_t *weights, uint16_t *scales) {
    const float high = bits == 8 ? 127 : 7, low = bits == 8 ? -127 : -8;
    const int width = bits == 8 ? 4 : 8; /* inputs whose bytes lie together */
#pragma omp parallel for schedule(static)
    for (int64_t p = 0; p < num_panels; p++) {
        for (int64_t g = 0; g < num_groups; g++) {
            uint8_t *group = weights + (p * num_groups + g) * 64 * bits;
            if (bits == 4) memset(group, 0, 256);
            for (int row = 0; row < ROWS; row++) {
                const float *x = rows + ((p * ROWS + row) * num_groups + g) * GROUP;
                float largest = 0, numbers[GROUP] = {0};
                for (int i = 0; i < GROUP; i++)
                    if (fabsf(x[i]) > fabsf(largest)) largest = x[i];
                scales[(p * num_groups + g) * ROWS + row] =
                    best_scale(x, bits == 8 ? fabsf(largest) : largest, divisors, num_divisors, low, high, numbers);
                for (int i = 0; i < GROUP; i++) {
                    const int shift = bits == 4 && i % 8 >= 4 ? 4 : 0, stored = (int)numbers[i] + (1 << (bits - 1));
                    uint8_t *at = group + i / width * 64 + row * 4 + i % 4;
                    *at = (uint8_t)((bits == 4 ? *at : 0) | stored << shift);
                }
            }
        }
    }
}
