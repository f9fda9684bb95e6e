/* What binds this library to kernels/native.py: a number that changes with any signature. */
#include <stdint.h>

int64_t ollampi_interface(void) { return 12; }
