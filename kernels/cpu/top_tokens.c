/* The largest scores of each row. kernels/top_tokens.py says what is computed; its NumPy twin gives the same. */
#include <features.h>
#include <stdint.h>
#include <string.h>

#include "clones.h"

enum { LANES = 32, DEPTH = 16, BLOCK = LANES * DEPTH };
static const int32_t INFINITE = 0x7f800000, MINUS_INFINITE = -0x7f800001; /* as `ordered` has them */

/* The bits of an fp32 number as an integer in the same order; NaN lies beyond the infinities. */
static inline int32_t ordered(float score) {
    int32_t bits;
    score += 0.0f; /* -0.0 becomes 0.0, its equal */
    memcpy(&bits, &score, sizeof bits);
    return bits ^ (bits >> 31 & 0x7fffffff);
}

static inline float score_of(int32_t order) {
    int32_t bits = order ^ (order >> 31 & 0x7fffffff);
    float score;
    memcpy(&score, &bits, sizeof score);
    return score;
}

/* Larger for a larger score, then for a smaller token; never 0. */
static inline uint64_t key_of(int32_t order, uint32_t token) {
    return (uint64_t)((uint32_t)order ^ 0x80000000u) << 32 | (uint32_t)~token;
}

static inline int32_t order_of(uint64_t key) { return (int32_t)((uint32_t)(key >> 32) ^ 0x80000000u); }

/* Put `key` into its place among the `count` largest so far, the largest first. */
static inline void insert(uint64_t *largest, int64_t count, uint64_t key) {
    int64_t place = count - 1;
    if (key <= largest[place]) return;
    for (; place > 0 && largest[place - 1] < key; place--) largest[place] = largest[place - 1];
    largest[place] = key;
}

/* Let maxima[lane] and minima[lane] take in one score for each of so many lanes. */
static inline void take_in(const float *scores, int lanes, int32_t *maxima, int32_t *minima) {
    for (int lane = 0; lane < lanes; lane++) {
        int32_t order = ordered(scores[lane]);
        maxima[lane] = order > maxima[lane] ? order : maxima[lane];
        minima[lane] = order < minima[lane] ? order : minima[lane];
    }
}

/* maxima[lane] = the largest of each LANES-th of up to BLOCK scores; minima[lane] takes in the smallest. */
static inline void block_maxima(const float *scores, int64_t size, int32_t *maxima, int32_t *minima) {
    for (int lane = 0; lane < LANES; lane++) maxima[lane] = INT32_MIN;
    if (size >= BLOCK) {
        for (int start = 0; start < BLOCK; start += LANES) take_in(scores + start, LANES, maxima, minima);
        return;
    }
    for (int64_t start = 0; start < size; start += LANES)
        take_in(scores + start, size - start < LANES ? (int)(size - start) : LANES, maxima, minima);
}

/* A number that at least `count` of the maxima reach, where so many are finite, and that few others do. */
static inline int32_t reached(const int32_t *maxima, int64_t num_maxima, int64_t count) {
    int64_t low = MINUS_INFINITE + 1, high = INFINITE; /* enough maxima reach `low`, too few reach `high` */
    while (high - low > 1) {
        int32_t middle = (int32_t)((low + high) / 2), found = 0;
        for (int64_t i = 0; i < num_maxima; i++) found += maxima[i] >= middle;
        if (found >= count) low = middle; else high = middle;
        if (found >= count && found <= count + count / 4) break;
    }
    return (int32_t)low;
}

/* scores [num_rows, size] -> the `count` largest of each row with their tokens (both [num_rows, count]), and whether
   all of the row are finite. A row with fewer finite scores ends with token 0 and -inf. largest: room for `count`,
   maxima: for size rounded up to whole blocks, divided by DEPTH. */
CLONES void ollampi_top_tokens(const float *scores, int64_t num_rows, int64_t size, int64_t count, uint64_t *largest,
                               int32_t *maxima, int64_t *tokens, float *values, uint8_t *finite) {
    for (int64_t row = 0; row < num_rows; row++, scores += size, tokens += count, values += count) {
        int32_t low = INT32_MAX, high = INT32_MIN, minima[LANES];
        int64_t num_maxima = 0;
        for (int lane = 0; lane < LANES; lane++) minima[lane] = INT32_MAX;
        for (int64_t start = 0; start < size; start += BLOCK, num_maxima += LANES) {
            int64_t left = size - start;
            block_maxima(scores + start, left < BLOCK ? left : BLOCK, maxima + num_maxima, minima);
        }
        for (int lane = 0; lane < LANES; lane++) low = minima[lane] < low ? minima[lane] : low;
        for (int64_t i = 0; i < num_maxima; i++) high = maxima[i] > high ? maxima[i] : high;
        finite[row] = high < INFINITE && low > MINUS_INFINITE;
        int32_t bound = reached(maxima, num_maxima, count);
        memset(largest, 0, count * sizeof *largest);
        for (int64_t i = 0; i < num_maxima; i++) {
            if (maxima[i] < bound) continue;
            int64_t first = i / LANES * BLOCK + i % LANES, end = (i / LANES + 1) * BLOCK;
            for (int64_t token = first; token < end && token < size; token += LANES) {
                int32_t order = ordered(scores[token]);
                if (order >= bound) insert(largest, count, key_of(order, (uint32_t)token));
            }
        }
        for (int64_t i = 0; i < count; i++) {
            tokens[i] = largest[i] ? (uint32_t)~largest[i] : 0;
            values[i] = score_of(largest[i] ? order_of(largest[i]) : MINUS_INFINITE);
        }
    }
}
