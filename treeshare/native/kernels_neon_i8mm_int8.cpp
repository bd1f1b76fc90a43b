// The kernels in codes of 8 bits with NEON's SMMLA.

#if defined(__aarch64__) && defined(__GNUC__)
#include "neon_i8mm.h"

#include "bfloat16.h"

#include "int8.h"
#include "int8_neon_i8mm.h"
#include "int8_linear.h"
#include "int8_products.h"
#include "int8_weights.h"
#endif
