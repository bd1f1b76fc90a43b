// The kernels in codes of 8 bits with NEON instructions.

#if defined(__aarch64__) && defined(__GNUC__)
#include "neon.h"

#include "bfloat16.h"

#include "int8.h"
#include "int8_neon.h"
#include "int8_linear.h"
#include "int8_products.h"
#include "int8_weights.h"
#endif
