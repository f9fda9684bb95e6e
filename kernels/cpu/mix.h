/* What attention over the cache needs to know. kernels/mix.py fills these in. */
#ifndef OLLAMPI_MIX_H
#define OLLAMPI_MIX_H
#include <stdint.h>

typedef struct { /* the vectors [layers, slots, KV heads, d] of keys or values; scales where they are in 8 bits */
    void *vectors;
    uint16_t *scales;
} Kept;

typedef struct { /* `count` tokens at positions `start` and behind of the sequence whose blocks begin at first_block;
                    each sees all positions up to its own, or, where whole is not 0, so many positions */
    int64_t token, count, start, first_block, whole;
} Piece;

typedef struct {
    Kept keys, values;
    int64_t kept; /* FP32, BF16 or INT8 */
    int64_t num_slots, block_size, num_heads, num_kv_heads, head_dim;
    const int64_t *first_heads; /* of each KV head the first query head that looks at it; one more: num_heads */
    int64_t num_tokens;
    int64_t num_turned;     /* pairs of a head */
    const float *cos, *sin; /* [tokens, num_turned] */
    const int64_t *slots;   /* [tokens] */
    int64_t num_pieces, num_positions; /* of pieces, and of all positions that their tokens see */
    const Piece *pieces;
    const int64_t *blocks;
    int64_t window; /* a token sees at most so many positions, 0 for all */
    float scale, cap; /* scores are products times scale, and, where cap is not 0, cap tanh(score / cap) of that */
    const float *query_norm, *key_norm; /* [d]: RMSNorm of each head before it is turned, NULL for none */
    float eps;
} Mix;
#endif
