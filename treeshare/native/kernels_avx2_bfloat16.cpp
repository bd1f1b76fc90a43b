// The kernels with AVX2 instructions in bfloat16, and those without an element.

#if defined(__x86_64__) && defined(__GNUC__)
#include "avx2.h"

#include "bfloat16.h"

#include "attention.h"
#include "experts.h"
#include "sampling.h"
#endif
