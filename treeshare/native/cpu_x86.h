// What an x86 CPU says of itself: the bits of CPUID and XCR0 that stand for the instruction sets of instruction_sets.h.
//
// A feature needs its own bit, those of all it builds on, and the operating system's word in XCR0 that it keeps the
// registers: a virtual machine may hide any of them.

#pragma once

#include <cpuid.h>

#include <cstdint>

// The words that tell, or bits of them that a level needs. CPUID's are named after leaf and register.
struct Cpu {
    uint32_t leaf1_ecx, leaf7_ebx, leaf7_ecx, leaf7_edx, leaf7_1_eax, xcr0;
};

constexpr Cpu operator|(const Cpu &a, const Cpu &b) {
    return {a.leaf1_ecx | b.leaf1_ecx, a.leaf7_ebx | b.leaf7_ebx,     a.leaf7_ecx | b.leaf7_ecx,
            a.leaf7_edx | b.leaf7_edx, a.leaf7_1_eax | b.leaf7_1_eax, a.xcr0 | b.xcr0};
}

inline bool has_all(const Cpu &cpu, const Cpu &needed) {
    const Cpu both = cpu | needed;
    return both.leaf1_ecx == cpu.leaf1_ecx && both.leaf7_ebx == cpu.leaf7_ebx && both.leaf7_ecx == cpu.leaf7_ecx &&
           both.leaf7_edx == cpu.leaf7_edx && both.leaf7_1_eax == cpu.leaf7_1_eax && both.xcr0 == cpu.xcr0;
}

constexpr uint32_t bit(int number) { return uint32_t(1) << number; }
constexpr Cpu leaf1_ecx(uint32_t bits) { return {bits, 0, 0, 0, 0, 0}; }
constexpr Cpu leaf7_ebx(uint32_t bits) { return {0, bits, 0, 0, 0, 0}; }
constexpr Cpu leaf7_ecx(uint32_t bits) { return {0, 0, bits, 0, 0, 0}; }
constexpr Cpu leaf7_edx(uint32_t bits) { return {0, 0, 0, bits, 0, 0}; }
constexpr Cpu leaf7_1_eax(uint32_t bits) { return {0, 0, 0, 0, bits, 0}; }
constexpr Cpu xcr0(uint32_t bits) { return {0, 0, 0, 0, 0, bits}; }

// A compiler may use all that a feature implies, so that the CPU must have it, too.
constexpr Cpu SSE4_2 = leaf1_ecx(bit(0) | bit(9) | bit(19) | bit(20) | bit(23)); // SSE3, SSSE3, SSE4.1, 4.2, POPCNT
constexpr Cpu XSAVE = leaf1_ecx(bit(26) | bit(27));                              // of the CPU, of the system
constexpr Cpu AVX = SSE4_2 | XSAVE | leaf1_ecx(bit(28)) | xcr0(bit(1) | bit(2)); // xmm, ymm
constexpr Cpu AVX2 = AVX | leaf7_ebx(bit(5));
constexpr Cpu FMA = AVX | leaf1_ecx(bit(12));
constexpr Cpu F16C = AVX | leaf1_ecx(bit(29));
constexpr Cpu AVX512F = AVX2 | FMA | F16C | leaf7_ebx(bit(16)) | xcr0(bit(5) | bit(6) | bit(7)); // masks, zmm, zmm16-31
constexpr Cpu AVX512BW = AVX512F | leaf7_ebx(bit(30));
constexpr Cpu AMX_TILE = XSAVE | leaf7_edx(bit(24)) | xcr0(bit(17) | bit(18)); // tiles' shapes, tiles

constexpr Cpu AVX_VNNI = leaf7_1_eax(bit(4));

struct Feature {
    const char *name;
    Cpu needed;
};

constexpr Feature FEATURES[] = {
    {"avx2", AVX2},
    {"fma", FMA},
    {"avx512f", AVX512F},
    {"avx512dq", AVX512F | leaf7_ebx(bit(17))},
    {"avx512bw", AVX512BW},
    {"avx512vl", AVX512F | leaf7_ebx(bit(31))},
    {"avx512vnni", AVX512F | leaf7_ecx(bit(11))},      // AVX-VNNI, bit 4 of leaf 7.1, is another instruction set
    {"avx512bf16", AVX512BW | leaf7_1_eax(bit(5))},
    {"amx-tile", AMX_TILE},
    {"amx-bf16", AMX_TILE | leaf7_edx(bit(22))},
    {"amx-int8", AMX_TILE | leaf7_edx(bit(25))},
};

// Whether `list` begins with `name` and then ends or has a comma.
constexpr bool begins_with(const char *list, const char *name) {
    while (*name)
        if (*list++ != *name++) return false;
    return !*list || *list == ',';
}

constexpr Cpu needed_by(const char *list, int feature = 0) {
    return begins_with(list, FEATURES[feature].name) ? FEATURES[feature].needed : needed_by(list, feature + 1);
}

// All that a list of features needs. A name that is not in FEATURES does not compile: it reads beyond the table.
constexpr Cpu needs(const char *list) {
    Cpu sum = needed_by(list);
    for (; *list; ++list)
        if (*list == ',') sum = sum | needed_by(list + 1);
    return sum;
}

inline bool is_intel() {
    uint32_t a, b, c, d;
    return __get_cpuid(0, &a, &b, &c, &d) && b == 0x756e6547 && d == 0x49656e69 && c == 0x6c65746e; // GenuineIntel
}

// This CPU; words that it does not have are zero.
inline Cpu this_cpu() {
    Cpu cpu = {};
    uint32_t a, b, c, d;
    if (__get_cpuid(1, &a, &b, &c, &d)) cpu.leaf1_ecx = c;
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d)) {
        const uint32_t last = a;
        cpu.leaf7_ebx = b;
        cpu.leaf7_ecx = c;
        cpu.leaf7_edx = d;
        if (last >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d)) cpu.leaf7_1_eax = a;
    }
    if (cpu.leaf1_ecx & bit(27)) { // else there is no XCR0
        __asm__("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
        cpu.xcr0 = a;
    }
    return cpu;
}
