// Which levels of instructions this CPU can run. The library has each kernel once for every level, whose name ends the
// kernel's.

#include <cstring>

namespace {

// Every feature that the level's TARGET names. Levels are a set: none implies another, and library.py has their
// order of preference.
#if defined(__x86_64__) && defined(__GNUC__)
bool has_avx512() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("fma");
}
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
#else
bool has_avx512() { return false; }
bool has_avx2() { return false; }
#endif

struct Level {
    const char *name;
    bool (*is_available)();
};

constexpr Level LEVELS[] = {{"avx512", has_avx512}, {"avx2", has_avx2}};

} // namespace

// 1 where the kernels of a level were built and this CPU runs them, else 0.
extern "C" int treeshare_has_level(const char *name) {
    for (const Level &level : LEVELS)
        if (!std::strcmp(level.name, name)) return level.is_available();
    return 0;
}
