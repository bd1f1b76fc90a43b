// The instruction sets that each level's code may use, as a compiler's target attribute names them. A level's TARGET
// and the check of the CPU in levels.cpp are both made from these lists, so that they cannot differ.

#pragma once

#define AVX2_FEATURES "avx2,fma"
#define AVX512F_FEATURES "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"
#define AVX512VNNI_FEATURES AVX512F_FEATURES ",avx512vnni"
#define AVX512_FEATURES AVX512F_FEATURES ",avx512bf16"
#define AMX_FEATURES AVX512_FEATURES ",amx-tile,amx-bf16,amx-int8"

// gcc knows tiles since version 11, clang since 12; with an older one level amx is not built.
#if __has_include(<amxbf16intrin.h>)
#define COMPILER_KNOWS_TILES 1
#else
#define COMPILER_KNOWS_TILES 0
#endif
