/* What is compiled for each level, for CPUs with AVX-512. */
#if defined(__x86_64__)
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,fma,prefer-vector-width=512")
#pragma GCC optimize("fp-contract=fast")
#define LEVEL(name) name##_avx512
enum { LANES = 16, VECTORS = 4, DENSE_ROWS = 2, DENSE_TOKENS = 4 };
#include "per_token.h"
#include "attention.h"
#include "dense.h"
#include "quantise_tile.h"
#endif
