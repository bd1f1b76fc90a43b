// The kernels without a CPU's own instructions in float32.

#if defined(__GNUC__)
#include "portable.h"

#include "float32.h"

#include "attention.h"
#include "experts.h"
#endif
