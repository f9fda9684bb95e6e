/* Quantise weights. kernels/quantised.py says what is computed; matmul.h defines the layout. */
#include "matmul.h"

#include <math.h>
#include <string.h>

#include "clones.h"

static inline uint16_t bf16(float x) { /* to the nearest, ties to even; x is finite, which to_bf16 would ask again */
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static inline float whole(float x, float low, float high) {
    const float number = rintf(x), least = number > low ? number : low; /* NaN is low: an integer has none */
    return least < high ? least : high;
}

/* A group of a panel, row by row in the lanes: what is beyond num_rows and width is 0. */
static inline void load(const void *rows, int64_t is_bf16, int64_t num_rows, int64_t width, int64_t stride,
                        float x[GROUP][ROWS]) {
    if (num_rows < ROWS || width < GROUP) memset(x, 0, sizeof(float[GROUP][ROWS]));
    for (int64_t row = 0; row < (num_rows < ROWS ? num_rows : ROWS); row++) {
        const uint16_t *halves = (const uint16_t *)rows + row * stride;
        const float *floats = (const float *)rows + row * stride;
        if (is_bf16)
            for (int i = 0; i < (width < GROUP ? width : GROUP); i++) x[i][row] = from_bf16(halves[i]);
        else
            for (int i = 0; i < (width < GROUP ? width : GROUP); i++) x[i][row] = floats[i];
    }
}

/* Of each row the scale of largest / divisors[i] that leaves the least squared error; 0 where none will do. */
static inline void best_scales(float x[GROUP][ROWS], const float *largest, const float *divisors, int64_t num_divisors,
                               float low, float high, uint16_t *best) {
    float least[ROWS];
    for (int r = 0; r < ROWS; r++) least[r] = INFINITY, best[r] = 0;
    for (int64_t d = 0; d < num_divisors; d++) {
        uint16_t scale[ROWS];
        float exact[ROWS], error[ROWS] = {0};
        for (int r = 0; r < ROWS; r++) scale[r] = bf16(largest[r] / divisors[d]), exact[r] = from_bf16(scale[r]);
        if (num_divisors == 1) /* nothing to compare: only what overflows */
            for (int r = 0; r < ROWS; r++) error[r] = fabsf(exact[r] * high);
        else
            for (int i = 0; i < GROUP; i++)
                for (int r = 0; r < ROWS; r++) { /* over the largest: squares of huge numbers are beyond fp32 */
                    const float off = (whole(x[i][r] / exact[r], low, high) * exact[r] - x[i][r]) / largest[r];
                    error[r] += off * off;
                }
        for (int r = 0; r < ROWS; r++) {
            const int better = (error[r] < least[r]) & (exact[r] != 0);
            least[r] = better ? error[r] : least[r];
            best[r] = better ? scale[r] : best[r];
        }
    }
}

/* A whole number, as the byte of the i-th input in its word: little end first. */
static inline uint32_t placed(float number, int64_t bits, int i) {
    return (uint32_t)(int32_t)(number + (float)(1 << (bits - 1))) << i % 4 * 8;
}

/* Words of 4 inputs of a row each, as bytes or halves of bytes in the order of matmul.h. */
static inline void store(uint32_t words[GROUP / 4][ROWS], int64_t bits, uint8_t *group) {
    if (bits == 8) {
        memcpy(group, words, sizeof(uint32_t[GROUP / 4][ROWS]));
        return;
    }
    for (int quad = 0; quad < GROUP / 4; quad += 2) {
        for (int r = 0; r < ROWS; r++) words[quad][r] |= words[quad + 1][r] << 4;
        memcpy(group + quad * 32, words[quad], sizeof words[quad]);
    }
}

/* rows [num_rows, width] in bf16 or fp32, `stride` from one to the next -> weights [panels, groups, 64 * bits] and
   scales [panels, groups, 16]; returned is whether all numbers are finite, else some groups are not set. Numbers lie
   from -high (8 bits) or -8 (4 bits) to high. The 16 rows of a panel are the lanes of all vectors, so that sums run in the order of the inputs on any CPU. */
CLONES int64_t ollampi_quantise_weights(const void *rows, int64_t is_bf16, int64_t num_rows, int64_t width,
                                        int64_t stride, int64_t bits, const float *divisors, int64_t num_divisors,
                                        uint8_t *weights, uint16_t *scales) {
    const float high = bits == 8 ? 127 : 7, low = bits == 8 ? -127 : -8;
    const int64_t num_panels = (num_rows + ROWS - 1) / ROWS, num_groups = (width + GROUP - 1) / GROUP;
    const int64_t item = is_bf16 ? 2 : 4;
    int64_t finite = 1;
#pragma omp parallel for schedule(static) reduction(&& : finite)
    for (int64_t p = 0; p < num_panels; p++) {
        for (int64_t g = 0; g < num_groups; g++) {
            const int64_t at = p * num_groups + g;
            const char *first = (const char *)rows + (p * ROWS * stride + g * GROUP) * item;
            float x[GROUP][ROWS], largest[ROWS] = {0}, off[ROWS] = {0}, sum = 0, exact[ROWS];
            uint32_t words[GROUP / 4][ROWS] = {{0}};
            load(first, is_bf16, num_rows - p * ROWS, width - g * GROUP, stride, x);
            for (int i = 0; i < GROUP; i++)
                for (int r = 0; r < ROWS; r++) largest[r] = fabsf(x[i][r]) > fabsf(largest[r]) ? x[i][r] : largest[r];
            for (int i = 0; i < GROUP; i++)
                for (int r = 0; r < ROWS; r++) off[r] += x[i][r] - x[i][r]; /* 0, or NaN from what is not finite */
            for (int r = 0; r < ROWS; r++) sum += off[r];
            finite = finite && sum == 0;
            if (sum != 0) continue;
            if (bits == 8)
                for (int r = 0; r < ROWS; r++) largest[r] = fabsf(largest[r]);
            best_scales(x, largest, divisors, num_divisors, low, high, scales + at * ROWS);
            for (int r = 0; r < ROWS; r++) exact[r] = from_bf16(scales[at * ROWS + r]);
            for (int i = 0; i < GROUP; i++)
                for (int r = 0; r < ROWS; r++) {
                    const float number = whole(x[i][r] / exact[r], low, high);
                    words[i / 4][r] |= placed(exact[r] == 0 ? 0 : number, bits, i);
                }
            store(words, bits, weights + at * 64 * bits);
        }
    }
    return finite;
}

/* rows [num_rows, width] in fp32, `stride` from one to the next, that are whole numbers from -2^(bits - 1) on times
   scales [num_rows, groups] in fp16 -> weights and scales as above; returned is whether they are, else some groups are
   wrong. width is a multiple of 32. */
CLONES int64_t ollampi_set_codes(const float *rows, const uint16_t *scales, int64_t num_rows, int64_t width,
                                 int64_t stride, int64_t bits, uint8_t *weights, uint16_t *kept) {
    const float high = (float)((1 << (bits - 1)) - 1), low = -high - 1;
    const int64_t num_panels = (num_rows + ROWS - 1) / ROWS, num_groups = width / GROUP;
    int64_t exact = 1;
#pragma omp parallel for schedule(static) reduction(&& : exact)
    for (int64_t p = 0; p < num_panels; p++) {
        for (int64_t g = 0; g < num_groups; g++) {
            const int64_t at = p * num_groups + g, left = num_rows - p * ROWS;
            float x[GROUP][ROWS], scale[ROWS], factor[ROWS];
            uint16_t *halves = kept + at * ROWS;
            uint32_t words[GROUP / 4][ROWS] = {{0}}, off = 0;
            load(rows + p * ROWS * stride + g * GROUP, 0, left, GROUP, stride, x);
            for (int r = 0; r < ROWS; r++) halves[r] = r < left ? scales[(p * ROWS + r) * num_groups + g] : 0;
            for (int r = 0; r < ROWS; r++) scale[r] = from_fp16(halves[r]), factor[r] = scale[r] == 0 ? 0 : 1 / scale[r];
            for (int i = 0; i < GROUP; i++)
                for (int r = 0; r < ROWS; r++) {
                    const float number = whole(x[i][r] * factor[r], low, high);
                    off |= !(number * scale[r] == x[i][r]);
                    words[i / 4][r] |= placed(number, bits, i);
                }
            exact = exact && !off;
            if (!off) store(words, bits, weights + at * 64 * bits);
        }
    }
    return exact;
}
