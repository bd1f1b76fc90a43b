// The kernels in codes of 8 bits with AVX2 instructions.

#if defined(__x86_64__) && defined(__GNUC__)
#include "avx2.h"

#include "bfloat16.h"

#include "int8.h"
#include "int8_pairs256.h"
#include "int8_linear.h"
#include "int8_products.h"
#include "int8_weights.h"
#endif
