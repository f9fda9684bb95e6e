/* The layout of quantised weights: panels of 16 rows, each in groups of 32 inputs.

   8 bits: a group of a panel is [8 quads][16 rows][4 inputs], a byte each, 128 added. 4 bits: [4][16 rows][4 inputs],
   the low halves the inputs of quads 0, 2, 4, 6 and the high halves those of the next quad, 8 added. Scales are bf16
   or fp16, [panels][groups][16 rows]. */
#ifndef OLLAMPI_MATMUL_H
#define OLLAMPI_MATMUL_H
#include <stdint.h>

#include "numbers.h"

enum { ROWS = 16, GROUP = 32, TILE = 8 };
#define SMALLEST 1e-30f /* a group of activations that are all smaller counts as zeros */

typedef struct { /* 1 to TILE tokens, which are multiplied together: `count` of them */
    const int8_t *values;   /* [groups][8 quads][count][4 inputs] */
    const float *scales;    /* [groups][count] */
    const int32_t *offsets; /* [groups][count], what the 128 or 8 in every weight add up to, negated */
} Tile;

/* Multiply one panel's weights and scales by a tile: out[t * stride + row] is set. `first`: the weights come from memory,
   not from the core's caches. */
typedef void (*Panel)(const uint8_t *weights, const uint16_t *scales, const Tile *x, int first, int64_t num_groups,
                      float *out, int64_t stride);

/* For scales in bf16 and in fp16, for 8 and for 4 bits, for 1 to TILE tokens. */
typedef const Panel Panels[2][2][TILE];
extern Panels panels_portable, panels_avx2, panels_avx512;

/* Define such a table from an inline function `panel` whose first arguments, count, bits and the type of the scales, are
   constants here. */
#define ONE_PANEL(N, BITS, TYPE)                                                                              \
    static TARGET void panel_##N##_##BITS##_##TYPE(const uint8_t *w, const uint16_t *s, const Tile *x, int first, \
                                                   int64_t num_groups, float *out, int64_t stride) {         \
        panel(N, BITS, TYPE, w, s, x, first, num_groups, out, stride);                                        \
    }
#define EIGHT(BITS, TYPE)                                                                                     \
    ONE_PANEL(1, BITS, TYPE) ONE_PANEL(2, BITS, TYPE) ONE_PANEL(3, BITS, TYPE) ONE_PANEL(4, BITS, TYPE)       \
    ONE_PANEL(5, BITS, TYPE) ONE_PANEL(6, BITS, TYPE) ONE_PANEL(7, BITS, TYPE) ONE_PANEL(8, BITS, TYPE)
#define NAMES(BITS, TYPE)                                                                                     \
    {panel_1_##BITS##_##TYPE, panel_2_##BITS##_##TYPE, panel_3_##BITS##_##TYPE, panel_4_##BITS##_##TYPE,      \
     panel_5_##BITS##_##TYPE, panel_6_##BITS##_##TYPE, panel_7_##BITS##_##TYPE, panel_8_##BITS##_##TYPE}
#define DEFINE_PANELS(TABLE)                                                                                  \
    EIGHT(8, BF16) EIGHT(4, BF16) EIGHT(8, FP16) EIGHT(4, FP16)                                               \
    Panels TABLE = {{NAMES(8, BF16), NAMES(4, BF16)}, {NAMES(8, FP16), NAMES(4, FP16)}};
#endif
