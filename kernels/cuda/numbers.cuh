/* The numbers and groups of kernels/codec.py, which defines every bit, on CUDA devices; codec.cu has the kernels.

   No header of others, so that NVRTC needs no path. Every operation on floats whose bits codec.py fixes is one of those
   that round to the nearest and are never contracted; build without fast math. FAST: what is read or written is there,
   and aligned; else it goes byte by byte, and what is behind the end counts as zeros. */

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef long long i64;

#define DEVICE static __device__ __forceinline__
#define ALL_LANES 0xffffffffu

static const int GROUP = 32, LANES = 8; /* numbers; lanes that hold a group, 4 numbers each */
static const u32 INFINITE = 0x7f800000, SMALLEST = 0x0d800000, NAN_SCALE = 0x7fc0; /* SMALLEST: 2^-100 */

/* The bytes that the codes of 32 numbers take, and those of one access. */
DEVICE constexpr int group_bytes(int level) { return level == 0 ? 128 : level == 1 ? 64 : level == 4 ? 16 : 32; }
DEVICE constexpr int access_bytes(int level) { return level == 0 ? 16 : level == 1 ? 8 : 4; }

DEVICE bool aligned(const void *at, int bytes) { return (unsigned long long)at % bytes == 0; }

template <bool FAST> DEVICE u32 get16(const u8 *at) {
    return FAST ? *(const u16 *)at : at[0] | (u32)at[1] << 8;
}

template <bool FAST> DEVICE void put16(u8 *at, u32 word) {
    if (FAST) {
        *(u16 *)at = (u16)word;
    } else {
        at[0] = (u8)word;
        at[1] = (u8)(word >> 8);
    }
}

template <bool FAST> DEVICE u32 get32(const u8 *at) {
    return FAST ? *(const u32 *)at : at[0] | (u32)at[1] << 8 | (u32)at[2] << 16 | (u32)at[3] << 24;
}

template <bool FAST> DEVICE void put32(u8 *at, u32 word) {
    if (FAST) {
        *(u32 *)at = word;
    } else {
        for (int k = 0; k < 4; k++) at[k] = (u8)(word >> 8 * k);
    }
}

/* Numbers i to i + 3 of x [n], zeros behind its end. */
template <bool FAST> DEVICE float4 get_numbers(const float *x, i64 i, i64 n) {
    if (FAST) return *(const float4 *)(x + i);
    return make_float4(i < n ? x[i] : 0.0f, i + 1 < n ? x[i + 1] : 0.0f, i + 2 < n ? x[i + 2] : 0.0f,
                       i + 3 < n ? x[i + 3] : 0.0f);
}

template <bool FAST> DEVICE void put_numbers(float4 value, float *x, i64 i, i64 n) {
    if (FAST) {
        *(float4 *)(x + i) = value;
    } else {
        if (i < n) x[i] = value.x;
        if (i + 1 < n) x[i + 1] = value.y;
        if (i + 2 < n) x[i + 2] = value.z;
        if (i + 3 < n) x[i + 3] = value.w;
    }
}

DEVICE float4 added(float4 a, float4 b) {
    return make_float4(__fadd_rn(a.x, b.x), __fadd_rn(a.y, b.y), __fadd_rn(a.z, b.z), __fadd_rn(a.w, b.w));
}

/* ---- one number ---- */

DEVICE u32 to_bf16(float x) {
    u32 bits = __float_as_uint(x), rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return bits << 1 > INFINITE << 1 ? NAN_SCALE : rounded;
}

DEVICE float from_bf16(u32 bits) { return __uint_as_float(bits << 16); }

/* x is at most 448 and a little; below 2^-6 all codes are 2^-9 apart, and so are floats between 2^14 and 2^15. */
DEVICE u32 to_fp8(float x) {
    u32 bits = __float_as_uint(x), size = bits & 0x7fffffff;
    u32 large = ((size + 0x7ffff + (size >> 20 & 1)) >> 20) - (120 << 3);
    u32 small = __float_as_uint(__fadd_rn(__uint_as_float(size), 16384.0f)) - 0x46800000;
    return (size < 0x3c800000 ? small : large) | (bits >> 24 & 0x80);
}

DEVICE float from_fp8(u32 code) {
    float size = __fmul_rn(__uint_as_float((code & 0x7f) << 20), 0x1p120f);
    u32 bits = (code & 0x7f) == 0x7f ? 0x7fc00000 : __float_as_uint(size);
    return __uint_as_float(bits | (code & 0x80) << 24);
}

template <int LEVEL> DEVICE u32 to_code(float x) {
    if (LEVEL == 3) return to_fp8(x);
    int whole = __float2int_rn(x);
    return LEVEL == 2 ? whole & 0xff : (whole < -8 ? -8 : whole > 7 ? 7 : whole) + 8;
}

template <int LEVEL> DEVICE float from_code(u32 code) {
    if (LEVEL == 3) return from_fp8(code);
    return LEVEL == 2 ? (float)(signed char)code : (float)((int)code - 8);
}

/* ---- one group ---- */

/* The size of a number above its sign: the highest is the largest one, the negative where two are of one size. */
DEVICE u32 key_of(float x) { return __float_as_uint(x) << 1 | __float_as_uint(x) >> 31; }

/* The highest key of the group that 8 lanes hold. */
DEVICE u32 group_key(float4 x) {
    u32 key = max(max(key_of(x.x), key_of(x.y)), max(key_of(x.z), key_of(x.w)));
    for (int step = 1; step < LANES; step *= 2) key = max(key, __shfl_xor_sync(ALL_LANES, key, step));
    return key;
}

template <int LEVEL> DEVICE u32 scale_of(u32 key) {
    u32 size = key >> 1, scale;
    if (LEVEL == 4) {
        scale = to_bf16(__fmul_rn(__uint_as_float(size | key << 31), -0.125f)); /* an exact quotient */
    } else {
        scale = (__float_as_uint(__fdiv_rn(__uint_as_float(size), LEVEL == 2 ? 127.0f : 448.0f)) + 0xffff) >> 16;
    }
    return size >= INFINITE ? NAN_SCALE : size < SMALLEST ? 0 : scale;
}

/* The codes of 4 numbers, a byte for each. */
template <int LEVEL> DEVICE u32 to_codes(float4 x, u32 scale) {
    const float factor = __frcp_rn(from_bf16(scale));
    u32 a = to_code<LEVEL>(__fmul_rn(x.x, factor)), b = to_code<LEVEL>(__fmul_rn(x.y, factor));
    u32 c = to_code<LEVEL>(__fmul_rn(x.z, factor)), d = to_code<LEVEL>(__fmul_rn(x.w, factor));
    return scale == 0 || scale == NAN_SCALE ? (LEVEL == 4 ? 0x08080808 : 0) : a | b << 8 | c << 16 | d << 24;
}

/* The codes of numbers i to i + 3, all of one group, of a part; a byte for each. */
template <int LEVEL, bool FAST> DEVICE u32 get_codes(const u8 *part, i64 i) {
    if (LEVEL == 4) return get32<FAST>(part + i / GROUP * 16 + i % 16) >> (i % GROUP / 16 * 4) & 0x0f0f0f0f;
    return get32<FAST>(part + i);
}

template <int LEVEL> DEVICE float4 from_codes(u32 word, float scale) {
    return make_float4(__fmul_rn(from_code<LEVEL>(word & 0xff), scale),
                       __fmul_rn(from_code<LEVEL>(word >> 8 & 0xff), scale),
                       __fmul_rn(from_code<LEVEL>(word >> 16 & 0xff), scale),
                       __fmul_rn(from_code<LEVEL>(word >> 24), scale));
}

/* ---- levels 0 and 1, which have no groups ---- */

template <int LEVEL> DEVICE float plain_number(const u8 *part, i64 i) {
    return LEVEL == 0 ? __uint_as_float(get32<false>(part + 4 * i)) : from_bf16(get16<false>(part + 2 * i));
}

template <int LEVEL, bool FAST> DEVICE float4 get_plain(const u8 *part, i64 i, i64 n) {
    if (FAST && LEVEL == 0) return *(const float4 *)(part + 4 * i);
    if (FAST) {
        uint2 two = *(const uint2 *)(part + 2 * i);
        return make_float4(from_bf16(two.x), from_bf16(two.x >> 16), from_bf16(two.y), from_bf16(two.y >> 16));
    }
    return make_float4(i < n ? plain_number<LEVEL>(part, i) : 0.0f, i + 1 < n ? plain_number<LEVEL>(part, i + 1) : 0.0f,
                       i + 2 < n ? plain_number<LEVEL>(part, i + 2) : 0.0f,
                       i + 3 < n ? plain_number<LEVEL>(part, i + 3) : 0.0f);
}

template <int LEVEL, bool FAST> DEVICE void put_plain(float4 x, u8 *codes, i64 i, i64 n) {
    if (FAST && LEVEL == 0) {
        *(float4 *)(codes + 4 * i) = x;
    } else if (FAST) {
        *(uint2 *)(codes + 2 * i) =
            make_uint2(to_bf16(x.x) | to_bf16(x.y) << 16, to_bf16(x.z) | to_bf16(x.w) << 16);
    } else {
        const float given[4] = {x.x, x.y, x.z, x.w};
        for (int k = 0; k < 4; k++) {
            if (i + k >= n) continue;
            if (LEVEL == 0) put32<false>(codes + 4 * (i + k), __float_as_uint(given[k]));
            if (LEVEL == 1) put16<false>(codes + 2 * (i + k), to_bf16(given[k]));
        }
    }
}
