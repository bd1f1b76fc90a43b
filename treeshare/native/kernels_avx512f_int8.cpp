// The kernels in codes of 8 bits with AVX-512 instructions.

#if defined(__x86_64__) && defined(__GNUC__)
#include "avx512f.h"

#include "bfloat16.h"

#include "int8.h"
#include "int8_pairs512.h"
#include "int8_linear.h"
#include "int8_products.h"
#include "int8_weights.h"
#endif
