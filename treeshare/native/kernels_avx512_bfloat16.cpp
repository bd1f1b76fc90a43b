// The kernels with AVX-512 BF16 instructions in bfloat16, and those without an element.

#if defined(__x86_64__) && defined(__GNUC__)
#include "avx512.h"

#include "bfloat16.h"

#include "attention.h"
#include "experts.h"
#include "sampling.h"
#endif
