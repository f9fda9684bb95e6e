/* Restore single rows of quantised weights. matmul.h defines the layout. */
#include "matmul.h"

/* out [count, width] of the given rows of weights [panels, groups, 64 * bits] and their scales of a type. */
void ollampi_take_rows(int64_t bits, const uint8_t *weights, const uint16_t *scales, int64_t type, int64_t width,
                       const int64_t *rows, int64_t count, float *out) {
    const int64_t num_groups = (width + GROUP - 1) / GROUP;
#pragma omp parallel for schedule(static) if (count * width > 1 << 16)
    for (int64_t r = 0; r < count; r++) {
        const int64_t panel = rows[r] / ROWS, place = rows[r] % ROWS;
        for (int64_t i = 0; i < width; i++) {
            const int64_t group = panel * num_groups + i / GROUP, input = i % GROUP;
            const uint8_t *quads = weights + group * 64 * bits + 4 * place + input % 4;
            const int number = bits == 8 ? quads[input / 4 * 64] - 128 : (quads[input / 8 * 64] >> input / 4 % 2 * 4 & 15) - 8;
            const uint16_t scale = scales[group * ROWS + place];
            out[r * width + i] = (float)number * (type == FP16 ? from_fp16(scale) : from_bf16(scale));
        }
    }
}
