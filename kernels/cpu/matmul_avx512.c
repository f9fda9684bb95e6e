/* Weights in groups of 32 times quantised activations, for CPUs with AVX-512 VNNI. matmul.h defines the layout. */
#include "matmul.h"

#if defined(__x86_64__)
#include <immintrin.h>

#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni")))
enum { AHEAD = 8192 }; /* bytes of weights between what is computed with and what is asked for */

#define INLINE static inline __attribute__((always_inline)) TARGET

INLINE __m512 scales_of(int type, const uint16_t *scales) {
    const __m256i halves = _mm256_loadu_si256((const __m256i *)scales);
    if (type == FP16) return _mm512_cvtph_ps(halves);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16)); /* the upper half of fp32 */
}

/* Add the products of 4 inputs of 16 rows to dots. */
INLINE __m512i quad(__m512i dots, __m512i w, const int8_t *x) {
    int32_t four;
    __builtin_memcpy(&four, x, sizeof four);
    return _mm512_dpbusd_epi32(dots, w, _mm512_set1_epi32(four));
}

/* out[t][0..15] for `count` tokens and one panel. */
INLINE void panel(int count, int bits, int type, const uint8_t *weights, const uint16_t *scales, const Tile *x,
                  int first, int64_t num_groups, float *out, int64_t stride) {
    __m512 sums[TILE];
    for (int t = 0; t < count; t++) sums[t] = _mm512_setzero_ps();
    const int8_t *values = x->values;
    const float *steps = x->scales;
    const int32_t *offsets = x->offsets;
    const __m512i low = _mm512_set1_epi8(15);
    for (int64_t g = 0; g < num_groups; g++) {
        __m512i dots[TILE];
#pragma GCC unroll 8
        for (int t = 0; t < count; t++) dots[t] = _mm512_set1_epi32(offsets[t]);
        if (first) {
#pragma GCC unroll 8
            for (int line = 0; line < bits; line++) _mm_prefetch(weights + AHEAD + 64 * line, _MM_HINT_T0);
        }
        if (bits == 8) {
#pragma GCC unroll 8
            for (int q = 0; q < 8; q++) {
                const __m512i w = _mm512_loadu_si512(weights + 64 * q);
#pragma GCC unroll 8
                for (int t = 0; t < count; t++) dots[t] = quad(dots[t], w, values + 4 * (q * count + t));
            }
        } else {
#pragma GCC unroll 4
            for (int q = 0; q < 4; q++) {
                const __m512i both = _mm512_loadu_si512(weights + 64 * q);
                const __m512i even = _mm512_and_si512(both, low);
                const __m512i odd = _mm512_and_si512(_mm512_srli_epi16(both, 4), low);
#pragma GCC unroll 8
                for (int t = 0; t < count; t++) dots[t] = quad(dots[t], even, values + 4 * (2 * q * count + t));
#pragma GCC unroll 8
                for (int t = 0; t < count; t++) dots[t] = quad(dots[t], odd, values + 4 * ((2 * q + 1) * count + t));
            }
        }
        const __m512 scale = scales_of(type, scales);
#pragma GCC unroll 8
        for (int t = 0; t < count; t++)
            sums[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots[t]), _mm512_mul_ps(scale, _mm512_set1_ps(steps[t])), sums[t]);
        weights += 64 * bits;
        scales += ROWS;
        values += GROUP * count;
        steps += count;
        offsets += count;
    }
    for (int t = 0; t < count; t++) _mm512_storeu_ps(out + t * stride, sums[t]);
}

DEFINE_PANELS(panels_avx512)
#endif
