// Rows of codes times panels of codes, as attention multiplies them: queries by keys, and weights by values. The products
// are those of a linear layer (int8_linear.h has their names), summed up exactly.

#pragma once

#include <cstdint>

#include "int8_linear.h"

namespace int8 {
namespace {

// A tile of rows, and where it begins.
struct TileOfRows {
    const Operand *operands;
    int64_t first, height;
};

// A tile, of at most M rows, times J panels after J others from `panel` on, then times what is left in fewer.
template <int M, int J>
TARGET void multiply_all(const CodeProducts &given, const TileOfRows &tile, int64_t panel) {
    const int64_t bytes = given.inputs * PANEL;
    alignas(64) int32_t sums[M][J * PANEL];
    for (; panel + J <= given.num_panels; panel += J) {
        multiply<M, J>(tile.operands, given.panels + panel * bytes, bytes, given.inputs, given.panel_sums + panel * PANEL,
                       sums);
        float *out = given.sums + tile.first * given.stride + panel * PANEL;
        for (int64_t m = 0; m < tile.height; ++m, out += given.stride)
            for (int64_t n = 0; n < J * PANEL; n += PANEL) store(out + n, load_sums(sums[m] + n));
    }
    if constexpr (J > 1) multiply_all<M, J / 2>(given, tile, panel);
}

// The smallest M that a tile fits into.
template <int M>
TARGET void multiply_tile_of(const CodeProducts &given, const TileOfRows &tile) {
    if constexpr (M > ROW_STEP) {
        if (tile.height <= M - ROW_STEP) return multiply_tile_of<M - ROW_STEP>(given, tile);
    }
    multiply_all<M, num_panels(M)>(given, tile, 0);
}

TARGET void multiply_codes(const CodeProducts &given) {
    static thread_local Scratch scratch;
    Operand *operands = reinterpret_cast<Operand *>(scratch.reserve(ROWS * given.inputs * sizeof(Operand)));
    const Tiles tiles(given.num_rows);
    const Session session;
    for (int64_t number = 0; number < tiles.count; ++number) {
        const TileOfRows tile = {operands, tiles.first(number), tiles.height(number)};
        const int64_t height = (tile.height + ROW_STEP - 1) / ROW_STEP * ROW_STEP;
        for (int64_t m = 0; m < tile.height; ++m)
            take_row(given.rows + (tile.first + m) * given.inputs, given.inputs, m, height, operands);
        multiply_tile_of<ROWS>(given, tile);
    }
}

} // namespace

extern "C" void LEVEL_EXPORT(multiply_codes)(const CodeProducts *given) { multiply_codes(*given); }

} // namespace int8
