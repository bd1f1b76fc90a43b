// Products of codes with VPMADDWD, which multiplies numbers of 16 bits and adds two neighbouring products, exactly; the
// instruction for 8 bits, VPMADDUBSW, saturates. Weights are widened as they are read, a row's codes once.
//
// A sum has two halves, of the first two inputs of each word and of its last two, side by side; they are added at the
// end.

#pragma once

#include <cstdint>

namespace int8 {
namespace {

using Operand = int16_t;

INLINE Operand take_code(int8_t code) { return code; }

} // namespace
} // namespace int8
