/* What this CPU can run. */
#ifndef OLLAMPI_LEVEL_H
#define OLLAMPI_LEVEL_H
#include <stdint.h>

/* 0 any CPU, 1 AVX2 with FMA and F16C, 2 AVX-512 with VNNI. */
int64_t ollampi_level(void);

enum { NO_GATE, SILU, GELU_TANH }; /* as kernels/ops.py numbers them */

/* gate [count] = its activation, SILU or GELU_TANH, times up; count is a multiple of 16. */
void ollampi_gate(int64_t level, int64_t activation, float *gate, const float *up, int64_t count);

/* Kernels that are compiled for each level from one text, per_token.h or dense.h. */
#if defined(__x86_64__)
#define AT_LEVEL(level, name, ...) \
    ((level) == 2 ? name##_avx512(__VA_ARGS__) : (level) == 1 ? name##_avx2(__VA_ARGS__) : name##_portable(__VA_ARGS__))
#define DECLARE(result, name, ...) \
    result name##_avx512(__VA_ARGS__), name##_avx2(__VA_ARGS__), name##_portable(__VA_ARGS__)
#else
#define AT_LEVEL(level, name, ...) ((void)(level), name##_portable(__VA_ARGS__))
#define DECLARE(result, name, ...) result name##_portable(__VA_ARGS__)
#endif
#endif
