/* The formats of kernels/codec.py: its levels by name, and where the bytes of a vector lie. */
#ifndef OLLAMPI_CODEC_FORMAT_H
#define OLLAMPI_CODEC_FORMAT_H
#include <stdint.h>

enum { AS_FP32, AS_BF16, AS_INT8, AS_FP8, AS_INT4, GROUP = 32 };

typedef uint16_t Loose16 __attribute__((aligned(1), may_alias)); /* vectors of codes may begin anywhere */
typedef float LooseFloat __attribute__((aligned(1), may_alias));

/* Bytes of the codes of one group. */
static inline int64_t code_bytes(int64_t format) {
    return format == AS_FP32 ? 4 * GROUP : format == AS_BF16 ? 2 * GROUP : format == AS_INT4 ? GROUP / 2 : GROUP;
}
#endif
