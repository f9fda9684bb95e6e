/* What is compiled for each level, for any CPU. */
#define LEVEL(name) name##_portable
enum { LANES = 4, VECTORS = 2, DENSE_ROWS = 1, DENSE_TOKENS = 1 };
#include "per_token.h"
#include "attention.h"
#include "dense.h"
#include "quantise_tile.h"
