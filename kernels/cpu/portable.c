/* per_token.h and dense.h for any CPU. */
#define LEVEL(name) name##_portable
enum { LANES = 4, DENSE_ROWS = 1, DENSE_TOKENS = 1 };
#include "per_token.h"
#include "dense.h"
