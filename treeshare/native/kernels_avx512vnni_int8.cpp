// The kernels in codes of 8 bits with AVX-512 VNNI.

#if defined(__x86_64__) && defined(__GNUC__)
#include "avx512vnni.h"

#include "bfloat16.h"

#include "int8.h"
#include "int8_vnni.h"
#include "int8_linear.h"
#include "int8_products.h"
#include "int8_weights.h"
#endif
