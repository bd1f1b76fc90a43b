// The kernels with AVX-512 BF16 instructions in float32.

#if defined(__x86_64__) && defined(__GNUC__)
#include "avx512.h"

#include "float32.h"

#include "attention.h"
#include "experts.h"
#endif
