/* Weights in groups of 32 times quantised activations, for CPUs with AVX2. matmul.h defines the layout. */
#include "matmul.h"

#if defined(__x86_64__)
#include <immintrin.h>

#define TARGET __attribute__((target("avx2,fma,f16c")))
#define INLINE static inline __attribute__((always_inline)) TARGET

enum { HALF = 8, FEW = 4 }; /* rows and tokens that fit 16 registers */

INLINE __m256 scales_of(int type, const uint16_t *scales) {
    const __m128i halves = _mm_loadu_si128((const __m128i *)scales);
    if (type == FP16) return _mm256_cvtph_ps(halves);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16)); /* the upper half of fp32 */
}

/* Add the products of 4 inputs of 8 rows, w in 0..255 or 0..15, to dots; w of 8 bits counts from 128. */
INLINE __m256i quad(__m256i dots, int bits, __m256i w, const int8_t *x) {
    int32_t four;
    __builtin_memcpy(&four, x, sizeof four);
    __m256i values = _mm256_set1_epi32(four);
    if (bits == 8) { /* |w| times x with w's sign: pairs of u8 x s8 would not fit 16 bits */
        w = _mm256_xor_si256(w, _mm256_set1_epi8((char)0x80));
        values = _mm256_sign_epi8(values, w);
        w = _mm256_abs_epi8(w);
    }
    return _mm256_add_epi32(dots, _mm256_madd_epi16(_mm256_maddubs_epi16(w, values), _mm256_set1_epi16(1)));
}

/* out[t][0..7] for up to FEW tokens, from the `at`th of `count` on, and half a panel. */
INLINE void half(int few, int count, int at, int bits, int type, const uint8_t *weights, const uint16_t *scales,
                 const Tile *x, int64_t num_groups, float *out, int64_t stride) {
    __m256 sums[FEW];
    for (int t = 0; t < few; t++) sums[t] = _mm256_setzero_ps();
    const int8_t *values = x->values + 4 * at;
    const float *steps = x->scales + at;
    const int32_t *offsets = x->offsets + at;
    const __m256i low = _mm256_set1_epi8(15);
    for (int64_t g = 0; g < num_groups; g++) {
        __m256i dots[FEW];
        for (int t = 0; t < few; t++) dots[t] = bits == 8 ? _mm256_setzero_si256() : _mm256_set1_epi32(offsets[t]);
        for (int q = 0; q < bits; q++) {
            const __m256i w = _mm256_loadu_si256((const __m256i *)(weights + 64 * q));
            for (int t = 0; t < few; t++) {
                if (bits == 8) {
                    dots[t] = quad(dots[t], 8, w, values + 4 * (q * count + t));
                } else {
                    const __m256i odd = _mm256_and_si256(_mm256_srli_epi16(w, 4), low);
                    dots[t] = quad(dots[t], 4, _mm256_and_si256(w, low), values + 4 * (2 * q * count + t));
                    dots[t] = quad(dots[t], 4, odd, values + 4 * ((2 * q + 1) * count + t));
                }
            }
        }
        const __m256 scale = scales_of(type, scales);
        for (int t = 0; t < few; t++)
            sums[t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots[t]), _mm256_mul_ps(scale, _mm256_set1_ps(steps[t])), sums[t]);
        weights += 64 * bits;
        scales += ROWS;
        values += GROUP * count;
        steps += count;
        offsets += count;
    }
    for (int t = 0; t < few; t++) _mm256_storeu_ps(out + t * stride, sums[t]);
}

INLINE void panel(int count, int bits, int type, const uint8_t *weights, const uint16_t *scales, const Tile *x,
                  int first, int64_t num_groups, float *out, int64_t stride) {
    (void)first;
    for (int rows = 0; rows < ROWS; rows += HALF) {
        for (int t = 0; t < count; t += FEW) {
            const int few = count - t < FEW ? count - t : FEW;
            half(few, count, t, bits, type, weights + 4 * rows, scales + rows, x, num_groups, out + t * stride + rows,
                 stride);
        }
    }
}

DEFINE_PANELS(panels_avx2)
#endif
