/* Attention over the blocks of the cache; kernels/paged_attention.py says what is computed. Compiled for each level,
   behind per_token.h.

   The sum of weights is kept relative to the largest score so far: Milakov and Gimelshein, "Online normalizer calculation
   for softmax", 2018. */
#include <stdlib.h>

enum {
    TILE_POSITIONS = 32,
    ROWS_AT_ONCE = VECTORS * LANES, /* (token, head) pairs that are computed together, a lane each */
    FEW_ROWS = 8 /* up to so many are computed one by one, with lanes along the head */
};

int64_t LEVEL(rows_at_once)(void) { return ROWS_AT_ONCE; }

/* RMSNorm of a head [d]. */
static inline void LEVEL(norm_head)(float *x, const float *weight, float eps, int64_t size) {
    const float scale = 1 / sqrtf(LEVEL(dot)(x, x, size) / (float)size + eps);
    SIMD for (int64_t i = 0; i < size; i++) x[i] = x[i] * scale * weight[i];
}

/* Norm and rotate a token's queries and keys in place and keep its keys and values. */
static inline void LEVEL(enter)(const Mix *mix, int64_t layer, void *qkv, int64_t type, int64_t token, float *row) {
    const int64_t size = mix->head_dim, heads = mix->num_heads, kv_heads = mix->num_kv_heads;
    const int64_t width = (heads + 2 * kv_heads) * size, half = mix->num_turned;
    const float *cos = mix->cos + token * half, *sin = mix->sin + token * half;
    LEVEL(load)(qkv, type, token * width, width, row);
    for (int64_t h = 0; h < heads + kv_heads; h++) {
        const float *norm = h < heads ? mix->query_norm : mix->key_norm;
        if (norm != NULL) LEVEL(norm_head)(row + h * size, norm, mix->eps, size);
        LEVEL(rotate)(row + h * size, cos, sin, half);
    }
    LEVEL(store)(row, type, qkv, token * width, heads * size);
    const int64_t vector = (layer * mix->num_slots + mix->slots[token]) * kv_heads;
    for (int64_t k = 0; k < kv_heads; k++) {
        LEVEL(keep)(row + (heads + k) * size, &mix->keys, mix->kept, vector + k, size);
        LEVEL(keep)(row + (heads + kv_heads + k) * size, &mix->values, mix->kept, vector + k, size);
    }
}

/* How many positions the token of a piece sees, and the first of them. */
static inline int64_t LEVEL(seen)(const Piece *piece, int64_t number) {
    return piece->whole ? piece->whole : piece->start + number + 1;
}

static inline int64_t LEVEL(first_seen)(const Mix *mix, int64_t length) {
    return mix->window && length > mix->window ? length - mix->window : 0;
}

/* The keys and values [count, d] of some positions of a sequence, in fp32. */
static inline void LEVEL(recall_tile)(const Mix *mix, int64_t layer, const Piece *piece, int64_t kv_head, int64_t begin,
                                      int64_t count, float *keys, float *values) {
    const int64_t *blocks = mix->blocks + piece->first_block;
    for (int64_t p = 0; p < count; p++) {
        const int64_t position = begin + p;
        const int64_t slot = blocks[position / mix->block_size] * mix->block_size + position % mix->block_size;
        const int64_t vector = (layer * mix->num_slots + slot) * mix->num_kv_heads + kv_head;
        LEVEL(recall)(&mix->keys, mix->kept, vector, mix->head_dim, keys + p * mix->head_dim);
        LEVEL(recall)(&mix->values, mix->kept, vector, mix->head_dim, values + p * mix->head_dim);
    }
}

/* Cap scores [count], a multiple of LANES. */
static inline void LEVEL(cap_all)(float *scores, int64_t count, float cap) {
    for (int64_t p = 0; p < count; p += LANES) {
        Floats some;
        memcpy(&some, scores + p, sizeof some);
        some = capped(some, cap);
        memcpy(scores + p, &some, sizeof some);
    }
}

/* What the query heads of one token see of one KV head. buffer: (2 heads + 2 TILE_POSITIONS) d + 2 heads numbers. */
static inline void LEVEL(attend_one)(const Mix *mix, int64_t layer, const void *qkv, int64_t type, const Piece *piece,
                                     int64_t number, int64_t kv_head, float *buffer, float *out) {
    const int64_t size = mix->head_dim, first = mix->first_heads[kv_head];
    const int64_t heads = mix->first_heads[kv_head + 1] - first, length = LEVEL(seen)(piece, number);
    const int64_t width = (mix->num_heads + 2 * mix->num_kv_heads) * size, token = piece->token + number;
    float *query = buffer, *mixed = query + heads * size, *keys = mixed + heads * size;
    float *values = keys + TILE_POSITIONS * size, *largest = values + TILE_POSITIONS * size, *sums = largest + heads;
    float scores[TILE_POSITIONS] = {0};
    LEVEL(load)(qkv, type, token * width + first * size, heads * size, query);
    SIMD for (int64_t i = 0; i < heads * size; i++) query[i] *= mix->scale;
    memset(mixed, 0, heads * size * sizeof *mixed);
    for (int64_t h = 0; h < heads; h++) {
        largest[h] = -INFINITY;
        sums[h] = 0;
    }
    for (int64_t begin = LEVEL(first_seen)(mix, length); begin < length; begin += TILE_POSITIONS) {
        const int64_t count = length - begin < TILE_POSITIONS ? length - begin : TILE_POSITIONS;
        LEVEL(recall_tile)(mix, layer, piece, kv_head, begin, count, keys, values);
        for (int64_t h = 0; h < heads; h++) {
            float top = largest[h], *to = mixed + h * size;
            for (int64_t p = 0; p < count; p++) scores[p] = LEVEL(dot)(query + h * size, keys + p * size, size);
            if (mix->cap != 0) LEVEL(cap_all)(scores, TILE_POSITIONS, mix->cap);
            for (int64_t p = 0; p < count; p++) top = scores[p] > top ? scores[p] : top;
            for (int64_t p = 0; p < count; p += LANES) {
                Floats some;
                memcpy(&some, scores + p, sizeof some);
                some = exps(some - top);
                memcpy(scores + p, &some, sizeof some);
            }
            if (top > largest[h]) {
                const float shrink = exps((Floats){0} + (largest[h] - top))[0];
                SIMD for (int64_t i = 0; i < size; i++) to[i] *= shrink;
                sums[h] *= shrink;
                largest[h] = top;
            }
            for (int64_t p = 0; p < count; p++) {
                const float weight = scores[p], *value = values + p * size;
                sums[h] += weight;
                SIMD for (int64_t i = 0; i < size; i++) to[i] = weight * value[i] + to[i];
            }
        }
    }
    for (int64_t h = 0; h < heads; h++) {
        const float share = 1 / sums[h], *from = mixed + h * size;
        float *to = out + (token * mix->num_heads + first + h) * size;
        SIMD for (int64_t i = 0; i < size; i++) to[i] = from[i] * share;
    }
}

/* sums[k] += the products of x[k * row + j * step] and the lanes y[j], over all j below count, for each k below n. */
INLINED void LEVEL(some_products)(int n, const float *x, int64_t row, int64_t step, int64_t count,
                                  const Floats (*y)[VECTORS], Floats (*sums)[VECTORS]) {
    Floats held[4][VECTORS];
#pragma GCC unroll 4
    for (int k = 0; k < n; k++)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++) held[k][v] = sums[k][v];
    for (int64_t j = 0; j < count; j++) {
#pragma GCC unroll 4
        for (int k = 0; k < n; k++)
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; v++) held[k][v] += x[k * row + j * step] * y[j][v];
    }
#pragma GCC unroll 4
    for (int k = 0; k < n; k++)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++) sums[k][v] = held[k][v];
}

static inline void LEVEL(add_products)(const float *x, int64_t row, int64_t step, int64_t count, int64_t n,
                                       const Floats (*y)[VECTORS], Floats (*sums)[VECTORS]) {
    int64_t k = 0;
    for (; k + 4 <= n; k += 4) LEVEL(some_products)(4, x + k * row, row, step, count, y, sums + k);
    for (; k < n; k++) LEVEL(some_products)(1, x + k * row, row, step, count, y, sums + k);
}

/* What is known of the lanes while tiles of positions pass by. */
typedef struct {
    Floats largest[VECTORS], sums[VECTORS];
    Ints firsts[VECTORS], lengths[VECTORS]; /* each lane sees the positions [first, length) */
} LEVEL(Seen);

/* Turn the scores [count] of positions from `begin` on into weights, and shrink `mixed` [d] where a larger one came. */
static inline void LEVEL(weigh)(LEVEL(Seen) *seen, float cap, int64_t begin, int64_t count, int64_t size,
                                Floats (*scores)[VECTORS], Floats (*mixed)[VECTORS]) {
    const Floats none = (Floats){0} - INFINITY;
    for (int v = 0; v < VECTORS; v++) {
        Floats top = seen->largest[v], sum = {0};
        for (int64_t p = 0; p < count; p++) {
            const Ints position = (Ints){0} + (int32_t)(begin + p);
            const Ints visible = (position < seen->lengths[v]) & (position >= seen->firsts[v]);
            if (cap != 0) scores[p][v] = capped(scores[p][v], cap);
            scores[p][v] = choose(visible, scores[p][v], none);
            top = choose(scores[p][v] > top, scores[p][v], top);
        }
        /* a lane whose window begins behind this tile has seen nothing yet */
        const Floats shrink = choose(top == none, (Floats){0} + 1, exps(seen->largest[v] - top));
        for (int64_t p = 0; p < count; p++) {
            const Ints position = (Ints){0} + (int32_t)(begin + p);
            const Ints visible = (position < seen->lengths[v]) & (position >= seen->firsts[v]);
            scores[p][v] = choose(visible, exps(scores[p][v] - top), (Floats){0});
            sum += scores[p][v];
        }
        for (int64_t i = 0; i < size; i++) mixed[i][v] *= shrink;
        seen->sums[v] = seen->sums[v] * shrink + sum;
        seen->largest[v] = top;
    }
}

/* What the query heads of all tokens of a piece see of one KV head: up to ROWS_AT_ONCE (token, head) pairs, a lane each.
   buffer: 2 TILE_POSITIONS d numbers; vectors: 2 d + TILE_POSITIONS. */
static inline void LEVEL(attend_many)(const Mix *mix, int64_t layer, const void *qkv, int64_t type, const Piece *piece,
                                      int64_t kv_head, float *buffer, Floats (*vectors)[VECTORS], float *out) {
    const int64_t size = mix->head_dim, first = mix->first_heads[kv_head];
    const int64_t heads = mix->first_heads[kv_head + 1] - first, rows = piece->count * heads;
    const int64_t width = (mix->num_heads + 2 * mix->num_kv_heads) * size;
    Floats(*queries)[VECTORS] = vectors, (*mixed)[VECTORS] = vectors + size, (*scores)[VECTORS] = vectors + 2 * size;
    float *keys = buffer, *values = buffer + TILE_POSITIONS * size, *lanes = (float *)queries;
    LEVEL(Seen) seen;
    memset(queries, 0, 2 * size * sizeof *queries); /* and mixed */
    for (int v = 0; v < VECTORS; v++) {
        seen.largest[v] = (Floats){0} - INFINITY;
        seen.sums[v] = (Floats){0};
        for (int lane = 0; lane < LANES; lane++) {
            const int64_t row = v * LANES + lane; /* a lane without a row sees the first position, for nothing */
            const int64_t length = row < rows ? LEVEL(seen)(piece, row / heads) : 1;
            seen.lengths[v][lane] = (int32_t)length;
            seen.firsts[v][lane] = (int32_t)LEVEL(first_seen)(mix, length);
        }
    }
    for (int64_t row = 0; row < rows; row++) {
        float query[size];
        LEVEL(load)(qkv, type, (piece->token + row / heads) * width + (first + row % heads) * size, size, query);
        for (int64_t i = 0; i < size; i++) lanes[i * ROWS_AT_ONCE + row] = query[i] * mix->scale;
    }
    const int64_t length = LEVEL(seen)(piece, piece->count - 1);
    for (int64_t begin = LEVEL(first_seen)(mix, LEVEL(seen)(piece, 0)); begin < length; begin += TILE_POSITIONS) {
        const int64_t count = length - begin < TILE_POSITIONS ? length - begin : TILE_POSITIONS;
        LEVEL(recall_tile)(mix, layer, piece, kv_head, begin, count, keys, values);
        memset(scores, 0, count * sizeof *scores);
        LEVEL(add_products)(keys, size, 1, size, count, (const Floats(*)[VECTORS])queries, scores);
        LEVEL(weigh)(&seen, mix->cap, begin, count, size, scores, mixed);
        LEVEL(add_products)(values, 1, size, count, size, (const Floats(*)[VECTORS])scores, mixed);
    }
    const float *found = (const float *)mixed, *sums = (const float *)seen.sums;
    for (int64_t row = 0; row < rows; row++) {
        float *to = out + ((piece->token + row / heads) * mix->num_heads + first + row % heads) * size;
        for (int64_t i = 0; i < size; i++) to[i] = found[i * ROWS_AT_ONCE + row] / sums[row];
    }
}

static inline void LEVEL(attend)(const Mix *mix, int64_t layer, const void *qkv, int64_t type, const Piece *piece,
                                 int64_t kv_head, float *buffer, Floats (*vectors)[VECTORS], float *out) {
    const int64_t heads = mix->first_heads[kv_head + 1] - mix->first_heads[kv_head], rows = piece->count * heads;
    if (rows > FEW_ROWS && rows <= ROWS_AT_ONCE) {
        LEVEL(attend_many)(mix, layer, qkv, type, piece, kv_head, buffer, vectors, out);
        return;
    }
    for (int64_t number = 0; number < piece->count; number++)
        LEVEL(attend_one)(mix, layer, qkv, type, piece, number, kv_head, buffer, out);
}

int64_t LEVEL(mix)(const Mix *mix, int64_t layer, void *qkv, int64_t type, float *out) {
    const int64_t kv_heads = mix->num_kv_heads, units = mix->num_pieces * kv_heads, size = mix->head_dim;
    int64_t most_heads = 0, failed = 0;
    for (int64_t k = 0; k < kv_heads; k++) {
        const int64_t heads = mix->first_heads[k + 1] - mix->first_heads[k];
        most_heads = heads > most_heads ? heads : most_heads;
    }
    const int64_t of_row = (mix->num_heads + 2 * kv_heads) * size;
    const int64_t of_unit = (2 * most_heads + 2 * TILE_POSITIONS) * size + 2 * most_heads;
    const int64_t vectors = 2 * size + TILE_POSITIONS;
#pragma omp parallel if (mix->num_tokens + mix->num_positions > 64)
    {
        Floats(*lanes)[VECTORS] = aligned_alloc(64, (vectors * (int64_t)sizeof *lanes + 63) / 64 * 64);
        float *buffer = malloc((of_row > of_unit ? of_row : of_unit) * sizeof *buffer);
        const int ready = lanes != NULL && buffer != NULL;
        if (!ready) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp for schedule(static)
        for (int64_t t = 0; t < mix->num_tokens; t++)
            if (ready) LEVEL(enter)(mix, layer, qkv, type, t, buffer);
#pragma omp for schedule(dynamic)
        for (int64_t u = units - 1; u >= 0; u--) /* what comes last in a prompt takes longest */
            if (ready)
                LEVEL(attend)(mix, layer, qkv, type, &mix->pieces[u / kv_heads], u % kv_heads, buffer, lanes, out);
        free(buffer);
        free(lanes);
    }
    return failed;
}
