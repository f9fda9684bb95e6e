/* Weights in groups of 32 times quantised activations, for any CPU. matmul.h defines the layout. */
#include <string.h>

#include "matmul.h"

#define TARGET

/* out[t][0..15] for `count` tokens and one panel. */
static inline void panel(int count, int bits, int type, const uint8_t *weights, const uint16_t *scales, const Tile *x,
                         int first, int64_t num_groups, float *out, int64_t stride) {
    (void)first;
    for (int t = 0; t < count; t++) {
        float sums[ROWS] = {0};
        for (int64_t g = 0; g < num_groups; g++) {
            int32_t dots[ROWS] = {0};
            for (int input = 0; input < GROUP; input++) {
                const int value = x->values[(g * GROUP + input / 4 * 4) * count + 4 * t + input % 4];
                const int at = bits == 8 ? input / 4 * 64 + input % 4 : input / 8 * 64 + input % 4;
                const uint8_t *w = weights + g * 64 * bits + at;
                const int shift = bits == 8 ? 0 : input / 4 % 2 * 4, mask = bits == 8 ? 255 : 15;
                for (int row = 0; row < ROWS; row++) dots[row] += ((w[4 * row] >> shift & mask) - (1 << (bits - 1))) * value;
            }
            for (int row = 0; row < ROWS; row++) {
                const uint16_t half = scales[g * ROWS + row];
                const float scale = type == FP16 ? from_fp16(half) : from_bf16(half);
                sums[row] += scale * x->scales[g * count + t] * (float)dots[row];
            }
        }
        memcpy(out + t * stride, sums, sizeof sums);
    }
}

DEFINE_PANELS(panels_portable)
