// The kernels with NEON's matrix instructions in bfloat16. Those in float32, and those without an element, are neon's.

#if defined(__aarch64__) && defined(__GNUC__)
#include "neon_bfmmla.h"

#include "bfloat16.h"

#include "attention.h"
#include "experts.h"
#endif
