/* Cut vectors into blocks, and those over threads, for the codecs of codec.h. */
#include <stddef.h>

#include "clones.h"
#include "codec_format.h"
#include "level.h"

enum {
    BLOCK = 2048,   /* numbers, a multiple of 32: so many in fp32 stay in a core's first cache */
    FEW = 1 << 17,  /* for which a second thread does not pay */
    MANY = 1 << 21, /* for which stores past the caches pay, even where the sum is read at once */
    BOUNDARY = 64,  /* of a vector in memory, for the widest level */
};

DECLARE(void, encode, int64_t, const float *, int64_t, uint8_t *, Loose16 *);
DECLARE(void, add, int64_t, const uint8_t *, const Loose16 *, int64_t, const float *, float *, int);
DECLARE(void, rms_norm, const float *, const void *, int64_t, float, int64_t, int64_t, float *);

typedef struct { /* the sum of vectors of `count` numbers each */
    int64_t level, format, count, num_parts;
    const uint8_t *const *parts;
} Sum;

#if defined(__x86_64__)
#define SETTLE __builtin_ia32_sfence() /* other threads may look at what was stored past the caches */
#else
#define SETTLE
#endif

/* STEP for each block, which begins `at` and has `some` numbers. A region of OpenMP takes time with one thread too. */
#define BLOCKS(COUNT, STEP)                                  \
    for (int64_t at = 0; at < (COUNT); at += BLOCK) {        \
        const int64_t some = least(BLOCK, (COUNT) - at);     \
        STEP;                                                \
    }
#define EACH_BLOCK(COUNT, STEP)                              \
    if ((COUNT) <= FEW) {                                    \
        BLOCKS(COUNT, STEP)                                  \
    } else {                                                 \
        _Pragma("omp parallel") {                            \
            _Pragma("omp for schedule(static) nowait")       \
            BLOCKS(COUNT, STEP)                              \
            SETTLE;                                          \
        }                                                    \
    }

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* Where the codes and the scales of the numbers from `first`, a multiple of 32, on lie among the bytes of a vector. */
static int64_t codes_at(int64_t format, int64_t first) { return first / GROUP * code_bytes(format); }

static int64_t scales_at(int64_t format, int64_t count, int64_t first) {
    return (count + GROUP - 1) / GROUP * code_bytes(format) + first / GROUP * (int64_t)sizeof(Loose16);
}

/* out [some] = the sum of the numbers from `first` on; past: as for `store`. */
static void sum_some(const Sum *sum, int64_t first, int64_t some, float *out, int past) {
    float kept[BLOCK];
    const int64_t codes = codes_at(sum->format, first), scales = scales_at(sum->format, sum->count, first);
    const float *before = NULL;
    for (int64_t part = 0; part < sum->num_parts; part++) {
        const uint8_t *bytes = sum->parts[part];
        const int last = part + 1 == sum->num_parts;
        float *to = past && !last ? kept : out;
        AT_LEVEL(sum->level, add, sum->format, bytes + codes, (const Loose16 *)(bytes + scales), some, before, to,
                 past && last);
        before = to;
    }
}

/* codes: of a vector of `count` numbers, of which x [some] are those from `first` on. */
static void encode_some(int64_t level, int64_t format, const float *x, int64_t first, int64_t some, int64_t count,
                        uint8_t *codes) {
    Loose16 *scales = (Loose16 *)(codes + scales_at(format, count, first));
    AT_LEVEL(level, encode, format, x, some, codes + codes_at(format, first), scales);
}

static void recode_some(const Sum *sum, int64_t first, int64_t some, uint8_t *codes) {
    float x[BLOCK];
    sum_some(sum, first, some, x, 0);
    encode_some(sum->level, sum->format, x, first, some, sum->count, codes);
}

/* codes: the bytes of x [count]. */
void ollampi_encode(int64_t level, int64_t format, const float *x, int64_t count, uint8_t *codes) {
    EACH_BLOCK(count, encode_some(level, format, x + at, at, some, count, codes))
}

/* out [count] = the sum of the parts, each the bytes of such a vector. */
void ollampi_decode_sum(int64_t level, int64_t format, const uint8_t *const *parts, int64_t num_parts, int64_t count,
                        float *out) {
    const Sum sum = {level, format, count, num_parts, parts};
    const int past = count >= MANY && (uintptr_t)out % BOUNDARY == 0;
    EACH_BLOCK(count, sum_some(&sum, at, some, out + at, past))
}

/* codes: the bytes of the sum of the parts; they may be one of these. */
void ollampi_recode(int64_t level, int64_t format, const uint8_t *const *parts, int64_t num_parts, int64_t count,
                    uint8_t *codes) {
    const Sum sum = {level, format, count, num_parts, parts};
    EACH_BLOCK(count, recode_some(&sum, at, some, codes))
}

/* x [count] += y [count]. */
CLONES static void add_to(float *restrict x, const float *restrict y, int64_t count) {
    for (int64_t i = 0; i < count; i++) x[i] += y[i];
}

/* residual [num_tokens, width] += the sum of the parts, normed = its RMSNorm with a weight [width] of a type. */
void ollampi_decode_sum_norm(int64_t level, int64_t format, const uint8_t *const *parts, int64_t num_parts,
                             float *residual, const void *weight, int64_t type, float eps, int64_t num_tokens,
                             int64_t width, float *normed) {
    const int64_t count = num_tokens * width, rows = width % GROUP ? num_tokens : 1; /* at once: no group is cut */
    const Sum sum = {level, format, count, num_parts, parts};
#pragma omp parallel for schedule(static) if (count > FEW && rows < num_tokens)
    for (int64_t t = 0; t < num_tokens; t += rows) {
        float *x = residual + t * width, *out = normed + t * width;
        for (int64_t at = 0; at < rows * width; at += BLOCK) {
            const int64_t some = least(BLOCK, rows * width - at);
            sum_some(&sum, t * width + at, some, out + at, 0);
            add_to(x + at, out + at, some);
        }
        AT_LEVEL(level, rms_norm, x, weight, type, eps, rows, width, out);
    }
}
