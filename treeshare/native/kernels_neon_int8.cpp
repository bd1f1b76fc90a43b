// The kernels in codes of 8 bits with NEON.

#if defined(__aarch64__) && defined(__GNUC__)
#include "neon.h"

#include "bfloat16.h"

#include "int8_plain.h"
#include "int8_linear.h"
#include "int8_weights.h"
#endif
