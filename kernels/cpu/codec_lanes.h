/* Bytes of a group into the lanes of vectors and back. */
#ifndef OLLAMPI_CODEC_LANES_H
#define OLLAMPI_CODEC_LANES_H
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "codec_format.h"
#include "vectors.h"

enum { PER = GROUP / LANES }; /* vectors of a group */

INLINED Floats load(const float *x) {
    Floats vector;
    memcpy(&vector, x, sizeof vector);
    return vector;
}

/* past: past the caches, for which `to` must begin at a vector's boundary. */
INLINED void store(float *to, Floats x, int past) {
#if defined(__x86_64__)
    if (past) {
#if LANES == 16
        _mm512_stream_ps(to, (__m512)x);
#elif LANES == 8
        _mm256_stream_ps(to, (__m256)x);
#else
        _mm_stream_ps(to, (__m128)x);
#endif
        return;
    }
#endif
    (void)past;
    memcpy(to, &x, sizeof x);
}

#if LANES == 16

INLINED Words greater(Words a, Words b) { return (Words)_mm512_max_epu32((__m512i)a, (__m512i)b); }

INLINED Words smaller(Words a, Words b) { return (Words)_mm512_min_epu32((__m512i)a, (__m512i)b); }

INLINED uint32_t most(Words x) { return _mm512_reduce_max_epu32((__m512i)x); }

/* A byte into each lane of `count` vectors. */
INLINED void widen(const uint8_t *bytes, int count, Words *lanes) {
    for (int i = 0; i < count; i++)
        lanes[i] = (Words)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(bytes + i * LANES)));
}

/* The lowest byte of each lane; the others of `count` vectors are lost. */
INLINED void narrow(const Words *lanes, int count, uint8_t *bytes) {
    for (int i = 0; i < count; i++)
        _mm_storeu_si128((__m128i *)(bytes + i * LANES), _mm512_cvtepi32_epi8((__m512i)lanes[i]));
}

#elif LANES == 8

INLINED Words greater(Words a, Words b) { return (Words)_mm256_max_epu32((__m256i)a, (__m256i)b); }

INLINED Words smaller(Words a, Words b) { return (Words)_mm256_min_epu32((__m256i)a, (__m256i)b); }

INLINED uint32_t most(Words x) {
    __m128i half = _mm_max_epu32(_mm256_castsi256_si128((__m256i)x), _mm256_extracti128_si256((__m256i)x, 1));
    half = _mm_max_epu32(half, _mm_shuffle_epi32(half, 0x4e));
    return (uint32_t)_mm_cvtsi128_si32(_mm_max_epu32(half, _mm_shuffle_epi32(half, 0xb1)));
}

INLINED void widen(const uint8_t *bytes, int count, Words *lanes) {
    for (int i = 0; i < count; i++)
        lanes[i] = (Words)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(bytes + i * LANES)));
}

INLINED void narrow(const Words *lanes, int count, uint8_t *bytes) {
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7); /* what is packed comes in halves */
    __m256i pairs[2];
    for (int i = 0; i < 2; i++) {
        const __m256i a = (__m256i)(lanes[2 * i % count] & 255), b = (__m256i)(lanes[(2 * i + 1) % count] & 255);
        pairs[i] = _mm256_packus_epi32(a, b);
    }
    const __m256i packed = _mm256_permutevar8x32_epi32(_mm256_packus_epi16(pairs[0], pairs[1]), order);
    memcpy(bytes, &packed, count * LANES);
}

#else

INLINED Words greater(Words a, Words b) { return (Words)choose((Ints)(a > b), (Floats)a, (Floats)b); }

INLINED Words smaller(Words a, Words b) { return (Words)choose((Ints)(a < b), (Floats)a, (Floats)b); }

INLINED uint32_t most(Words x) {
    uint32_t found = 0;
    for (int i = 0; i < LANES; i++) found = x[i] > found ? x[i] : found;
    return found;
}

INLINED void widen(const uint8_t *bytes, int count, Words *lanes) {
    uint32_t numbers[GROUP];
    _Pragma("omp simd") for (int i = 0; i < count * LANES; i++) numbers[i] = bytes[i];
    memcpy(lanes, numbers, count * sizeof *lanes);
}

INLINED void narrow(const Words *lanes, int count, uint8_t *bytes) {
    uint32_t numbers[GROUP];
    memcpy(numbers, lanes, count * sizeof *lanes);
    _Pragma("omp simd") for (int i = 0; i < count * LANES; i++) bytes[i] = (uint8_t)numbers[i];
}

#endif
#endif
