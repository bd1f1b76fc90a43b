// What the kernels share: the instructions they may use, masks, conversions, memory, a clock, the linear layer.

#pragma once

#include <immintrin.h>

#include <chrono>
#include <cstdint>
#include <cstdlib>

#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma")))
#define INLINE TARGET __attribute__((always_inline)) static inline

INLINE __mmask32 first32(int64_t count) { return count >= 32 ? ~0u : count <= 0 ? 0u : (1u << count) - 1; }
INLINE __mmask16 first16(int64_t count) { return count >= 16 ? 0xffff : count <= 0 ? 0 : (1 << count) - 1; }

// Sixteen bfloat16 as float32; lanes outside the mask are zero and not read.
INLINE __m512 load_bf16(__mmask16 mask, const uint16_t *source) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, source)), 16));
}

INLINE void store_bf16(__mmask16 mask, uint16_t *target, __m512 value) {
    _mm256_mask_storeu_epi16(target, mask, (__m256i)_mm512_cvtneps_pbh(value));
}

// Rounded to bfloat16, as a layer's result is when it is stored.
INLINE __m512 round_bf16(__m512 value) {
    const __m512i halves = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(value));
    return _mm512_castsi512_ps(_mm512_slli_epi32(halves, 16));
}

// 2 ** x for finite x; relative error below 3e-7; about 0 from -150 down, infinite from 128 up.
INLINE __m512 exp2_ps(__m512 x) {
    x = _mm512_max_ps(x, _mm512_set1_ps(-150.0f));
    const __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512 f = _mm512_sub_ps(x, whole);
    __m512 y = _mm512_set1_ps(1.3333558e-3f);
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(9.6181291e-3f));
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(5.5504109e-2f));
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(2.4022651e-1f));
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(6.9314718e-1f));
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(y, whole);
}

// Two neighbouring bfloat16 in each 32-bit lane, as a dot product takes them.
INLINE __m512bh pairs(const void *address) { return (__m512bh)_mm512_load_si512(address); }
INLINE __m512bh broadcast_pair(const uint16_t *address) {
    return (__m512bh)_mm512_set1_epi32(*reinterpret_cast<const int32_t *>(address));
}

// Memory of one thread that is kept from call to call.
struct Scratch {
    char *memory = nullptr;
    size_t size = 0;
    ~Scratch() { std::free(memory); }
    char *reserve(size_t wanted) {
        if (wanted > size) {
            std::free(memory);
            size = (wanted + 4095) / 4096 * 4096;
            memory = static_cast<char *>(std::aligned_alloc(4096, size));
            if (!memory) std::abort();
        }
        return memory;
    }
};

// One thread's stopwatch: charges the time since its last lap.
struct Laps {
    int64_t *sums;
    std::chrono::steady_clock::time_point last;
    explicit Laps(int64_t *sums) : sums(sums) {
        if (sums) last = std::chrono::steady_clock::now();
    }
    void lap(int kind) {
        if (!sums) return;
        const auto now = std::chrono::steady_clock::now();
        const int64_t passed = std::chrono::duration_cast<std::chrono::nanoseconds>(now - last).count();
        __atomic_fetch_add(sums + kind, passed, __ATOMIC_RELAXED);
        last = now;
    }
};

// A linear layer: weight [num_outputs][num_inputs], an even number of inputs; bias [num_outputs] or null.
struct Linear {
    const uint16_t *weight, *bias;
    int64_t num_inputs, num_outputs;
};

// out = x weight^T + bias: x [num_rows][num_inputs], out [num_rows][num_outputs]. To be called by every thread of a
// parallel region; all have finished when it returns.
void apply_linear(const Linear &linear, const uint16_t *x, uint16_t *out, int64_t num_rows);
