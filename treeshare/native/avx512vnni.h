// AVX-512 with its instructions for codes of 8 bits (VNNI); all but those is level avx512f's.

#pragma once

#include "avx512f.h"

#undef TARGET
#undef LEVEL_EXPORT
#define TARGET __attribute__((target(AVX512VNNI_FEATURES)))
#define LEVEL_EXPORT(name) treeshare_##name##_avx512vnni
