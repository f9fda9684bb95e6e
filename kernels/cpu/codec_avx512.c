/* The codecs of codec.h for CPUs with AVX-512. */
#if defined(__x86_64__)
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,fma,prefer-vector-width=512")
#define LEVEL(name) name##_avx512
#define LANES 16
#include "codec.h"
#endif
