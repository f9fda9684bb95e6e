/* Vectors of numbers into codes and back; kernels/codec.py says what is computed. Compiled for each level, every
   product and sum rounded on its own: all make the same bits. */
#include "codec_lanes.h"
#include "numbers.h"

enum { TOGETHER = 16 }; /* groups whose scales are computed together */

INLINED uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

INLINED float of_bits(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* Of a group x [32] the largest number's bits, turned by one: they grow with a number's size, and of numbers of one
   size the negative one's are larger; infinity's and NaN's are the largest. */
INLINED uint32_t key_of(const float *x) {
    Words key = {0};
    for (int i = 0; i < PER; i++) {
        const Words bits = (Words)load(x + i * LANES);
        key = greater(key, bits << 1 | bits >> 31);
    }
    return most(key);
}

/* Scales of groups with such keys, and what their numbers are multiplied by: 0 where the codes are those of zeros.
   Returns whether there is such a group. */
INLINED int scale_all(int64_t format, const uint32_t *keys, Loose16 *scales, float *factors) {
    uint32_t any = 0;
    _Pragma("omp simd reduction(| : any)") for (int g = 0; g < TOGETHER; g++) {
        const uint32_t size = keys[g] >> 1, wrong = -(uint32_t)(size >= 0x7f800000);
        const uint32_t zero = -(uint32_t)(size < 0x0d800000); /* 2^-100 */
        uint32_t bits;
        if (format == AS_INT4) {
            bits = bits_of(of_bits(size | keys[g] << 31) / -8);
            bits += 0x7fff + (bits >> 16 & 1);
        } else {
            bits = bits_of(of_bits(size) / (format == AS_INT8 ? 127.0f : 448.0f)) + 0xffff;
        }
        bits &= 0xffff0000;
        scales[g] = (uint16_t)((wrong & 0x7fc0) | (~wrong & ~zero & bits >> 16));
        factors[g] = of_bits(~wrong & ~zero & bits_of(1 / of_bits(bits)));
        any |= wrong | zero;
    }
    return any != 0;
}

/* The E4M3 codes of numbers of sizes up to 448. Below 2^-6 their unit is 2^-9, which is that of 2^14 in fp32. */
INLINED Words fp8_of(Floats x) {
    const Words bits = (Words)x, size = bits & 0x7fffffff, edge = (Words){0} + 0x3c800000; /* 2^-6: 8 units */
    const Words large = greater(size, edge), units = (Words)((Floats)smaller(size, edge) + 16384) - 0x46800000;
    return (((large + 0x7ffff + (large >> 20 & 1)) >> 20) - (120 << 3) + units - 8) | (bits >> 24 & 0x80);
}

/* The numbers of such codes, likewise. */
INLINED Floats of_fp8(Words codes) {
    const Words size = codes & 0x7f, edge = (Words){0} + 8;
    const Floats large = (Floats)((greater(size, edge) << 20) + (120 << 23));
    const Floats units = __builtin_convertvector((Ints)smaller(size, edge), Floats) * 0x1p-9f;
    return (Floats)((Words)(large + (units - 0x1p-6f)) | (codes & 0x80) << 24);
}

/* Codes of x [32]. A sum with 1.5 * 2^23 ends in the rounded number. */
INLINED void encode_group(int64_t format, const float *x, float factor, uint8_t *codes) {
    Words lanes[PER];
    for (int i = 0; i < PER; i++) {
        const Floats scaled = load(x + i * LANES) * factor;
        if (format == AS_INT8)
            lanes[i] = (Words)(scaled + 12582912);
        else if (format == AS_FP8)
            lanes[i] = fp8_of(scaled);
        else
            lanes[i] = smaller((Words)(scaled + 12582920), (Words){0} + 0x4b40000f) & 15; /* 8 added, at most 15 */
    }
    if (format == AS_INT4)
        for (int i = 0; i < PER / 2; i++) lanes[i] |= lanes[i + PER / 2] << 4;
    narrow(lanes, format == AS_INT4 ? PER / 2 : PER, codes);
}

/* Codes of up to TOGETHER groups. */
INLINED void encode_groups(int64_t format, const float *x, int64_t groups, uint8_t *codes, Loose16 *scales) {
    const int64_t bytes = code_bytes(format);
    uint32_t keys[TOGETHER] = {0};
    Loose16 found[TOGETHER];
    float factors[TOGETHER];
    for (int64_t g = 0; g < groups; g++) keys[g] = key_of(x + g * GROUP);
    const int any = scale_all(format, keys, found, factors);
    for (int64_t g = 0; g < groups; g++) {
        if (any && factors[g] == 0)
            memset(codes + g * bytes, format == AS_INT4 ? 0x88 : 0, bytes);
        else
            encode_group(format, x + g * GROUP, factors[g], codes + g * bytes);
    }
    memcpy(scales, found, groups * sizeof *scales);
}

INLINED void encode_vector(int64_t format, const float *x, int64_t count, uint8_t *codes, Loose16 *scales) {
    const int64_t whole = count / GROUP, bytes = code_bytes(format);
    int64_t g = 0;
    for (; g + TOGETHER <= whole; g += TOGETHER)
        encode_groups(format, x + g * GROUP, TOGETHER, codes + g * bytes, scales + g);
    if (g < whole) encode_groups(format, x + g * GROUP, whole - g, codes + g * bytes, scales + g);
    if (whole * GROUP < count) {
        float filled[GROUP] = {0};
        memcpy(filled, x + whole * GROUP, (count - whole * GROUP) * sizeof *x);
        encode_groups(format, filled, 1, codes + whole * bytes, scales + whole);
    }
}

/* Codes and scales of x [count]. */
void LEVEL(encode)(int64_t format, const float *x, int64_t count, uint8_t *codes, Loose16 *scales) {
    Loose16 *halves = (Loose16 *)codes;
    switch (format) {
    case AS_FP32: memcpy(codes, x, count * sizeof *x); break;
    case AS_BF16:
        _Pragma("omp simd") for (int64_t i = 0; i < count; i++) halves[i] = to_bf16(x[i]);
        break;
    case AS_INT8: encode_vector(AS_INT8, x, count, codes, scales); break;
    case AS_FP8: encode_vector(AS_FP8, x, count, codes, scales); break;
    default: encode_vector(AS_INT4, x, count, codes, scales);
    }
}

/* The numbers of a group. A code next to 2^23 in fp32 is what that number is more. */
INLINED void decode_group(int64_t format, const uint8_t *codes, float scale, Floats *x) {
    Words lanes[PER];
    widen(codes, format == AS_INT4 ? PER / 2 : PER, lanes);
    for (int i = PER - 1; i >= 0; i--) {
        if (format == AS_INT8)
            x[i] = ((Floats)(lanes[i] ^ 0x4b000080) - 8388736) * scale; /* 128 added */
        else if (format == AS_FP8)
            x[i] = of_fp8(lanes[i]) * scale;
        else
            x[i] = ((Floats)((i < PER / 2 ? lanes[i] & 15 : lanes[i - PER / 2] >> 4) | 0x4b000000) - 8388616) * scale;
    }
}

/* out [count] = before [count], zeros where that is NULL, plus the numbers of codes. */
INLINED void add_groups(int64_t format, const uint8_t *codes, const Loose16 *scales, int64_t count, const float *before,
                        float *out, int past) {
    for (int64_t at = 0; at < count; at += GROUP, codes += code_bytes(format), scales++) {
        Floats x[PER];
        decode_group(format, codes, from_bf16(*scales), x);
        if (count - at >= GROUP) {
            if (before)
                for (int i = 0; i < PER; i++) x[i] = load(before + at + i * LANES) + x[i];
            for (int i = 0; i < PER; i++) store(out + at + i * LANES, x[i], past);
        } else {
            float last[GROUP];
            memcpy(last, x, sizeof x);
            for (int64_t i = 0; i < count - at; i++) out[at + i] = before ? before[at + i] + last[i] : last[i];
        }
    }
}

INLINED void add_numbers(int64_t format, const uint8_t *codes, int64_t count, const float *before, float *out) {
    const LooseFloat *whole = (const LooseFloat *)codes;
    const Loose16 *halves = (const Loose16 *)codes;
    if (before) {
        _Pragma("omp simd") for (int64_t i = 0; i < count; i++) out[i] =
            before[i] + (format == AS_FP32 ? whole[i] : from_bf16(halves[i]));
    } else {
        _Pragma("omp simd") for (int64_t i = 0; i < count; i++) out[i] =
            format == AS_FP32 ? whole[i] : from_bf16(halves[i]);
    }
}

/* The same for a vector of any format. */
void LEVEL(add)(int64_t format, const uint8_t *codes, const Loose16 *scales, int64_t count, const float *before,
                float *out, int past) {
    switch (format) {
    case AS_FP32: add_numbers(AS_FP32, codes, count, before, out); break;
    case AS_BF16: add_numbers(AS_BF16, codes, count, before, out); break;
    case AS_INT8: add_groups(AS_INT8, codes, scales, count, before, out, past); break;
    case AS_FP8: add_groups(AS_FP8, codes, scales, count, before, out, past); break;
    default: add_groups(AS_INT4, codes, scales, count, before, out, past);
    }
}
