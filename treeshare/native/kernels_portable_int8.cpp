// The kernels in codes of 8 bits with C++ alone.

#if defined(__GNUC__)
#include "portable.h"

#include "bfloat16.h"

#include "int8.h"
#include "int8_plain.h"
#include "int8_linear.h"
#include "int8_products.h"
#include "int8_weights.h"
#endif
