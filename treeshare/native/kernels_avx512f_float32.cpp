// The kernels of level avx512f in float32.

#if defined(__x86_64__) && defined(__GNUC__)
#include "avx512f.h"

#include "float32.h"

#include "attention.h"
#include "experts.h"
#endif
