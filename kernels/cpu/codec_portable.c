/* The codecs of codec.h for any CPU. */
#define LEVEL(name) name##_portable
#define LANES 4
#include "codec.h"
