// The kernels with tiles in bfloat16. Those in float32, and those without an element, are AVX-512's.

#if defined(__x86_64__) && defined(__GNUC__)
#include "instruction_sets.h"
#if COMPILER_KNOWS_TILES
#include "amx.h"

#include "bfloat16.h"

#include "attention.h"
#include "experts.h"
#endif
#endif
