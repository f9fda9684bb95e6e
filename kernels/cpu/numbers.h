/* The types in which numbers are kept, and how they are read and written. */
#ifndef OLLAMPI_NUMBERS_H
#define OLLAMPI_NUMBERS_H
#include <stdint.h>
#include <string.h>

enum { FP32, BF16, INT8, FP16 }; /* as kernels/native.py numbers them */

static inline float from_bf16(uint16_t upper) { /* bf16 is the upper half of fp32 */
    const uint32_t bits = (uint32_t)upper << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static inline uint16_t to_bf16(float x) { /* to the nearest, ties to even; NaN stays one */
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return (uint16_t)((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded);
}

static inline float from_fp16(uint16_t half) {
    const uint32_t size = half & 0x7fff, bits = (size << 13) + ((size < 0x7c00 ? 112u : 224u) << 23);
    float x;
    memcpy(&x, &bits, sizeof x);
    x = size < 0x400 ? (float)size * 0x1p-24f : x; /* subnormal numbers of fp16 are none of fp32 */
    return half & 0x8000 ? -x : x;
}
#endif
