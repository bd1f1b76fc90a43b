// The kernels with AVX2 instructions in float32.

#if defined(__x86_64__) && defined(__GNUC__)
#include "avx2.h"

#include "float32.h"

#include "attention.h"
#include "experts.h"
#endif
