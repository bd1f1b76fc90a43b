// How many floating-point operations one core does in a second when all its numbers are in registers: the peak of one
// kind of instruction, as peaks.py asks for it. Prints GFLOP/s, the highest of several tries.

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <ctime>

#ifdef __x86_64__
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

constexpr int ROUNDS = 2'000'000;

// Twelve sums, so that none waits for itself. The compiler is kept from joining or dropping them by asm, which says that
// it changes them.
#define TWELVE(SUM) SUM(0) SUM(1) SUM(2) SUM(3) SUM(4) SUM(5) SUM(6) SUM(7) SUM(8) SUM(9) SUM(10) SUM(11)
#define LOOP(name, features, vector, operands, instruction, operations)                                                \
    __attribute__((target(features), noinline)) static double name() {                                                 \
        vector s0{}, s1{}, s2{}, s3{}, s4{}, s5{}, s6{}, s7{}, s8{}, s9{}, s10{}, s11{};                               \
        operands a{}, b{};                                                                                             \
        for (int round = 0; round < ROUNDS; ++round) { TWELVE(instruction) }                                           \
        return 12.0 * (operations) * ROUNDS;                                                                           \
    }

#define FMA(i) __asm__ volatile("vfmadd231ps %1, %2, %0" : "+v"(s##i) : "v"(a), "v"(b));
#define DOT(i) __asm__ volatile("vdpbf16ps %1, %2, %0" : "+v"(s##i) : "v"(a), "v"(b));
#define BYTES(i) __asm__ volatile("vpdpbusd %1, %2, %0" : "+v"(s##i) : "v"(a), "v"(b));

LOOP(fma256, "avx2,fma", __m256, __m256, FMA, 16)
LOOP(fma512, "avx512f", __m512, __m512, FMA, 32)
LOOP(dot512, "avx512f,avx512bf16", __m512, __m512i, DOT, 64)
LOOP(bytes512, "avx512f,avx512vnni", __m512i, __m512i, BYTES, 128)

// Four sums of 16 x 16 outputs, each over `inputs` inputs, which are 64 bytes.
struct alignas(64) TileShapes {
    unsigned char palette = 1, start_row = 0, reserved[14] = {};
    unsigned short row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    unsigned char rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
#define TILES(name, features, instruction, inputs)                                                                     \
    __attribute__((target(features), noinline)) static double name() {                                                 \
        constexpr int REQUEST_PERMISSION = 0x1023, TILE_DATA = 18; /* of arch_prctl */                                 \
        if (syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA)) return 0.0;                                        \
        static const TileShapes shapes;                                                                                \
        _tile_loadconfig(&shapes);                                                                                     \
        _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);                                                    \
        _tile_zero(4); _tile_zero(5); _tile_zero(6); _tile_zero(7);                                                    \
        for (int round = 0; round < ROUNDS / 16; ++round) {                                                            \
            instruction(0, 4, 6);                                                                                      \
            instruction(1, 4, 7);                                                                                      \
            instruction(2, 5, 6);                                                                                      \
            instruction(3, 5, 7);                                                                                      \
        }                                                                                                              \
        _tile_release();                                                                                               \
        return 4.0 * 2 * 16 * 16 * (inputs) * (ROUNDS / 16);                                                           \
    }

TILES(tiles_bf16, "amx-tile,amx-bf16", _tile_dpbf16ps, 32)
TILES(tiles_int8, "amx-tile,amx-int8", _tile_dpbssd, 64)
#endif

static double seconds() {
    timespec now;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return now.tv_sec + now.tv_nsec * 1e-9;
}

struct Kind {
    const char *name;
    double (*run)();
};

static const Kind KINDS[] = {
#ifdef __x86_64__
    {"fma256", fma256}, {"fma512", fma512},         {"dot512", dot512},
    {"bytes512", bytes512}, {"tiles_bf16", tiles_bf16}, {"tiles_int8", tiles_int8},
#endif
    {nullptr, nullptr}};

int main(int argc, char **argv) {
    for (const Kind *kind = KINDS; argc == 2 && kind->name; ++kind) {
        if (std::strcmp(kind->name, argv[1])) continue;
        double best = 0.0;
        for (int attempt = 0; attempt < 9; ++attempt) {
            const double started = seconds(), operations = kind->run();
            best = std::max(best, operations / (seconds() - started));
        }
        std::printf("%.1f\n", best / 1e9);
        return best > 0.0 ? 0 : 1;
    }
    std::fprintf(stderr, "usage: peaks KIND\n");
    return 2;
}
