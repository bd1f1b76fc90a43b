// Which of the kernels this CPU can run. Each is there once for every level of instructions, its name ends in it.

extern "C" {

// Of the functions' arguments.
int treeshare_version() { return 8; }

// The best level: 2 for AVX-512 BF16, 1 for AVX2, 0 for none; each includes those below it.
int treeshare_level() {
#if defined(__x86_64__) && defined(__GNUC__)
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return 0;
    const bool has_512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                         __builtin_cpu_supports("avx512bf16");
    return has_512 ? 2 : 1;
#else
    return 0;
#endif
}
}
