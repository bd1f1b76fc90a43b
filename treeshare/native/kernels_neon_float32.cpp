// The kernels with NEON instructions in float32.

#if defined(__aarch64__) && defined(__GNUC__)
#include "neon.h"

#include "float32.h"

#include "attention.h"
#include "experts.h"
#endif
