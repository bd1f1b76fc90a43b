// The kernels without a CPU's own instructions in bfloat16, and those without an element.

#if defined(__GNUC__)
#include "portable.h"

#include "bfloat16.h"

#include "attention.h"
#include "experts.h"
#include "sampling.h"
#endif
