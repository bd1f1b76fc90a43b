// What an aarch64 CPU says of itself, through the operating system: the bits of AT_HWCAP and AT_HWCAP2.

#pragma once

#include <sys/auxv.h>

#include <cstdint>

// The words that tell, or bits of them that a level needs.
struct Cpu {
    uint32_t hwcap, hwcap2;
};

inline bool has_all(const Cpu &cpu, const Cpu &needed) {
    return (cpu.hwcap & needed.hwcap) == needed.hwcap && (cpu.hwcap2 & needed.hwcap2) == needed.hwcap2;
}

constexpr Cpu NEON = {1 << 1, 0};         // HWCAP_ASIMD
constexpr Cpu BFMMLA = {1 << 1, 1 << 14}; // and HWCAP2_BF16
constexpr Cpu DOTPROD = {1 << 1 | 1 << 20, 0}; // and HWCAP_ASIMDDP
constexpr Cpu I8MM = {1 << 1, 1 << 13};        // and HWCAP2_I8MM

inline Cpu this_cpu() { return {uint32_t(getauxval(AT_HWCAP)), uint32_t(getauxval(AT_HWCAP2))}; }
