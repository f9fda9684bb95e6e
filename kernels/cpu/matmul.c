/* Quantise activations and multiply them by quantised weights. kernels/quantised.py says what is computed. */
#include "matmul.h"

#include <features.h>
#include <math.h>

#include "clones.h"

/* The best table that this CPU can run: 0 portable, 1 AVX2, 2 AVX-512 VNNI. */
int64_t ollampi_matmul_level(void) {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
        return 2;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 1;
#endif
    return 0;
}

static const Panel *table(int64_t level, int64_t bits) {
#if defined(__x86_64__)
    if (level == 2) return panels_avx512[bits == 4];
    if (level == 1) return panels_avx2[bits == 4];
#endif
    (void)level;
    return panels_portable[bits == 4];
}

/* x [num_groups, 32] -> values [num_groups, 32] from -127 to 127, and what `Activations` wants of each group. */
CLONES void ollampi_quantise(const float *x, int64_t num_groups, int8_t *values, float *scales, int32_t *offsets8,
                             int32_t *offsets4) {
    for (int64_t g = 0; g < num_groups; g++, x += GROUP, values += GROUP) {
        float largest = 0, poison = 0; /* poison: 0, or NaN where a number is not finite */
        for (int i = 0; i < GROUP; i++) {
            const float size = fabsf(x[i]);
            largest = size > largest ? size : largest;
            poison += x[i] * 0.0f;
        }
        const float factor = largest > SMALLEST ? 127 / largest : 0;
        int32_t sum = 0;
        for (int i = 0; i < GROUP; i++) {
            const float scaled = rintf(x[i] * factor);
            const int32_t value = scaled >= -127 && scaled <= 127 ? (int32_t)scaled : 0;
            values[i] = (int8_t)value;
            sum += value;
        }
        scales[g] = (factor > 0 ? largest / 127 : 0) + poison;
        offsets8[g] = -128 * sum;
        offsets4[g] = -8 * sum;
    }
}

/* out [num_tokens, num_panels * 16] of weights [num_panels, num_groups, 64 * bits] and their scales. */
void ollampi_matmul(int64_t level, int64_t bits, const uint8_t *weights, const uint16_t *scales, const int8_t *values,
                    const float *steps, const int32_t *offsets8, const int32_t *offsets4, int64_t num_tokens,
                    int64_t num_panels, int64_t num_groups, float *out) {
    const Activations x = {values, steps, offsets8, offsets4};
    const Panel *panels = table(level, bits);
    const int64_t stride = num_panels * ROWS;
#pragma omp parallel for schedule(static)
    for (int64_t p = 0; p < num_panels; p++) {
        for (int64_t token = 0; token < num_tokens; token += TILE) {
            const int64_t left = num_tokens - token;
            panels[left < TILE ? left - 1 : TILE - 1](weights + p * num_groups * 64 * bits, scales + p * num_groups * ROWS,
                                                      &x, token, num_groups, out + token * stride + p * ROWS, stride);
        }
    }
}
