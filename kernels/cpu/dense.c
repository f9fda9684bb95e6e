/* Choose the level of the product with plain weights. */
#include "level.h"

DECLARE(int64_t, dense, int64_t, const void *, int64_t, int64_t, const float *, int64_t, float *);

/* out [num_tokens, num_rows] of weights [num_rows, width] in fp32 or bf16. Returns 1 where there was no memory for it. */
int64_t ollampi_dense(int64_t level, int64_t type, const void *weights, int64_t num_rows, int64_t width, const float *x,
                      int64_t num_tokens, float *out) {
    return AT_LEVEL(level, dense, type, weights, num_rows, width, x, num_tokens, out);
}
