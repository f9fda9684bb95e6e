/* per_token.h and dense.h for any CPU. */
#define LEVEL(name) name##_portable
enum { DENSE_ROWS = 2, DENSE_TOKENS = 1 };
#include "per_token.h"
#include "dense.h"
