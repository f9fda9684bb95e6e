/* The codecs of codec.h for CPUs with AVX2. */
#if defined(__x86_64__)
#pragma GCC target("avx2,fma,f16c")
#define LEVEL(name) name##_avx2
#define LANES 8
#include "codec.h"
#endif
