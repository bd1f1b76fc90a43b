// Which levels of instructions were built and which of them a CPU can run. The library has each kernel once for every
// level, whose name ends the kernel's.

#include <cstdint>
#include <cstring>

#if defined(__x86_64__) && defined(__GNUC__)
#include "cpu_x86.h"
#include "instruction_sets.h"
#include "tile_permission.h"
#elif defined(__aarch64__) && defined(__GNUC__)
#include "cpu_aarch64.h"
#else // other levels' code is empty
struct Cpu {};
static Cpu this_cpu() { return {}; }
static bool has_all(const Cpu &, const Cpu &) { return true; }
#endif

namespace {

// Levels are a set: none implies another, and library.py has their order of preference.
struct Level {
    const char *name, *features;
    Cpu needed;
    bool is_built; // or served by a level that is
};

#if defined(__x86_64__) && defined(__GNUC__)

#define LEVEL(name, features, is_built) {name, features, needs(features), is_built}

constexpr Level LEVELS[] = {
    LEVEL("amx", AMX_FEATURES, COMPILER_KNOWS_TILES),
    LEVEL("avx512", AVX512_FEATURES, true),
    LEVEL("avx512vnni", AVX512VNNI_FEATURES, true),
    LEVEL("avx512f", AVX512F_FEATURES, true),
    LEVEL("avx2", AVX2_FEATURES, true),
    {"portable", "", {}, true},
};

// Whether the operating system lets this process use the registers that a level needs.
bool is_permitted(const Level &level) { return !has_all(level.needed, AMX_TILE) || may_use_tiles(); }

// Whether the next level is faster here. Intel's CPUs with AVX-VNNI do one vdpbf16ps for four FMAs: half the products.
bool is_slow(const Level &level) {
    return !std::strcmp(level.name, "avx512") && is_intel() && has_all(this_cpu(), AVX_VNNI);
}

#else

constexpr Level LEVELS[] = {
#if defined(__aarch64__) && defined(__GNUC__)
    {"neon_bfmmla", "asimd,bf16", BFMMLA, true},
    {"neon_i8mm", "asimd,i8mm", I8MM, true},
    {"neon_dotprod", "asimd,dotprod", DOTPROD, true},
    {"neon", "asimd", NEON, true},
#endif
    {"portable", "", {}, true},
};

bool is_permitted(const Level &) { return true; }
bool is_slow(const Level &) { return false; }

#endif

const Level *find_level(const char *name) {
    for (const Level &level : LEVELS)
        if (!std::strcmp(level.name, name)) return &level;
    return nullptr;
}

} // namespace

extern "C" {

// 1 where the kernels of a level were built and this CPU runs them, 0 where it does not, -1 where none were built.
int treeshare_has_level(const char *name) {
    const Level *level = find_level(name);
    return level && level->is_built ? has_all(this_cpu(), level->needed) && is_permitted(*level) : -1;
}

// 1 where a level should not be taken unless it is named.
int treeshare_is_slow_level(const char *name) {
    const Level *level = find_level(name);
    return level && is_slow(*level);
}

// Whether a CPU of which the words of `Cpu` are given runs a level's kernels, were they built or not: for tests.
int treeshare_cpu_has_level(const uint32_t *words, const char *name) {
    const Level *level = find_level(name);
    Cpu cpu;
    std::memcpy(&cpu, words, sizeof(cpu));
    return level ? has_all(cpu, level->needed) : -1;
}

// The instruction sets of a level, with commas between them; null if it is not known.
const char *treeshare_level_features(const char *name) {
    const Level *level = find_level(name);
    return level ? level->features : nullptr;
}
}
