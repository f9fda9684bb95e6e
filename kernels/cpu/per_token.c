/* Choose the level of the small operations of a decoder layer. */
#include "level.h"
#include "mix.h"

DECLARE(void, rms_norm, const float *, const void *, int64_t, float, int64_t, int64_t, float *);
DECLARE(void, gate, int64_t, float *, const float *, int64_t);
DECLARE(void, gate_multiply, int64_t, const void *, int64_t, int64_t, int64_t, void *);
DECLARE(int64_t, rows_at_once, void);
DECLARE(int64_t, mix, const Mix *, int64_t, void *, int64_t, float *);

void ollampi_rms_norm(int64_t level, const float *x, const void *weight, int64_t type, float eps, int64_t num_tokens,
                      int64_t width, float *out) {
    AT_LEVEL(level, rms_norm, x, weight, type, eps, num_tokens, width, out);
}

void ollampi_gate(int64_t level, int64_t activation, float *gate_, const float *up, int64_t count) {
    AT_LEVEL(level, gate, activation, gate_, up, count);
}

void ollampi_gate_multiply(int64_t level, int64_t activation, const void *gate_up, int64_t type, int64_t num_tokens,
                           int64_t width, void *out) {
    AT_LEVEL(level, gate_multiply, activation, gate_up, type, num_tokens, width, out);
}

int64_t ollampi_rows_at_once(int64_t level) { return AT_LEVEL(level, rows_at_once); }

/* Returns 1 where there was no memory for it. */
int64_t ollampi_mix(int64_t level, const Mix *mix_, int64_t layer, void *qkv, int64_t type, float *out) {
    return AT_LEVEL(level, mix, mix_, layer, qkv, type, out);
}
