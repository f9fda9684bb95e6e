/* Vectors of as many numbers as a register of the level holds. Nothing passes one to a function that is not inlined. */
#ifndef OLLAMPI_VECTORS_H
#define OLLAMPI_VECTORS_H
#include <stdint.h>

#pragma GCC diagnostic ignored "-Wpsabi"

#define INLINED static inline __attribute__((always_inline))

typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef uint32_t Words __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef double Doubles __attribute__((vector_size(8 * LANES)));

/* Of each lane a where the mask is set, else b. */
INLINED Floats choose(Ints mask, Floats a, Floats b) { return (Floats)((mask & (Ints)a) | (~mask & (Ints)b)); }

/* e^x within 2^-22, by the steps of kernels/elementary.py; arguments beyond -87 and 88 count as these, NaN stays. */
INLINED Floats exps(Floats x) {
    const Floats low = (Floats){0} - 87, high = (Floats){0} + 88;
    x = choose(x < low, low, choose(x > high, high, x));
    const Floats shifted = x * 1.44269504f + 12582912.0f; /* 1.5 * 2^23: the sum ends in the rounded exponent */
    const Floats exponent = shifted - 12582912.0f;
    const Floats rest = (x - exponent * 0.693359375f) - exponent * -2.12194440e-4f;
    Floats p = rest * (1.0f / 5040) + 1.0f / 720;
    p = p * rest + 1.0f / 120;
    p = p * rest + 1.0f / 24;
    p = p * rest + 1.0f / 6;
    p = p * rest + 0.5f;
    p = p * rest + 1.0f;
    p = p * rest + 1.0f;
    return p * (Floats)(((Words)shifted + 127) << 23); /* 2^exponent: what lies above the exponent is shifted out */
}

/* cap tanh(x / cap), within cap 2^-22; NaN stays. */
INLINED Floats capped(Floats x, float cap) { return cap - 2 * cap / (exps(x * (2 / cap)) + 1); }
#endif
