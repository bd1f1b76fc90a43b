// The kernels in codes of 8 bits with tiles.

#if defined(__x86_64__) && defined(__GNUC__)
#include "instruction_sets.h"
#if COMPILER_KNOWS_TILES
#include "amx.h"

#include "bfloat16.h"

#include "int8.h"
#include "int8_tiles.h"
#include "int8_linear.h"
#include "int8_products.h"
#include "int8_weights.h"
#endif
#endif
