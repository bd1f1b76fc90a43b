// The kernels with AVX2 instructions.

#if defined(__x86_64__) && defined(__GNUC__)
#include "avx2.h"

#include "attention.h"
#include "layers.h"
#include "sampling.h"
#endif
