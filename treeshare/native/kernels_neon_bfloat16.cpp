// The kernels with NEON instructions in bfloat16, and those without an element.

#if defined(__aarch64__) && defined(__GNUC__)
#include "neon.h"

#include "bfloat16.h"

#include "attention.h"
#include "experts.h"
#include "sampling.h"
#endif
