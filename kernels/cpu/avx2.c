/* What is compiled for each level, for CPUs with AVX2. */
#if defined(__x86_64__)
#pragma GCC target("avx2,fma")
#pragma GCC optimize("fp-contract=fast")
#define LEVEL(name) name##_avx2
enum { LANES = 8, VECTORS = 2, DENSE_ROWS = 1, DENSE_TOKENS = 2 };
#include "per_token.h"
#include "attention.h"
#include "dense.h"
#include "quantise_tile.h"
#endif
