// Runs calls of kernels from a file, for machines without Python: driver LIBRARY CALLS RESULT, or driver LIBRARY LEVEL,
// which prints what treeshare_has_level says of it. tests/native/calls.py writes the file and reads the result.
//
// A file: the memory that all arguments lie in; the places in it where an address is to be written, with that address as
// an offset in the memory; the calls. The result is the memory after them.

#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

namespace {

constexpr int MAX_INTEGERS = 8, MAX_FLOATS = 2;

struct Call {
    char name[64];
    int64_t is_address[MAX_INTEGERS], integers[MAX_INTEGERS];
    float floats[MAX_FLOATS];
};

// Whole numbers and floats are counted apart in both architectures' calling conventions: their order does not matter,
// and what a kernel does not take it does not see.
using Kernel = void (*)(int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, float, float);

[[noreturn]] void fail(const char *what) {
    std::fprintf(stderr, "driver: %s\n", what);
    std::exit(1);
}

void read(std::FILE *file, void *target, size_t size) {
    if (std::fread(target, 1, size, file) != size) fail("the file of calls is too short");
}

int64_t read_count(std::FILE *file) {
    int64_t count;
    read(file, &count, sizeof(count));
    return count;
}

void *find(void *library, const char *name) {
    void *function = dlsym(library, name);
    if (!function) fail(dlerror());
    return function;
}

} // namespace

int main(int count, char **words) {
    if (count < 3) fail("expected LIBRARY CALLS RESULT, or LIBRARY LEVEL");
    void *library = dlopen(words[1], RTLD_NOW);
    if (!library) fail(dlerror());
    if (count == 3) {
        const auto has_level = reinterpret_cast<int (*)(const char *)>(find(library, "treeshare_has_level"));
        std::printf("%d\n", has_level(words[2]));
        return 0;
    }
    std::FILE *file = std::fopen(words[2], "rb");
    if (!file) fail("the file of calls cannot be read");
    const int64_t size = read_count(file);
    char *memory = static_cast<char *>(std::aligned_alloc(64, (size + 63) / 64 * 64));
    read(file, memory, size);
    std::vector<int64_t> places(2 * read_count(file)), offsets;
    read(file, places.data(), places.size() * sizeof(int64_t));
    for (size_t i = 0; i < places.size(); i += 2) {
        const uint64_t address = reinterpret_cast<uint64_t>(memory + places[i + 1]);
        std::memcpy(memory + places[i], &address, sizeof(address));
    }
    std::vector<Call> calls(read_count(file));
    read(file, calls.data(), calls.size() * sizeof(Call));
    for (const Call &call : calls) {
        int64_t a[MAX_INTEGERS];
        for (int i = 0; i < MAX_INTEGERS; ++i)
            a[i] = call.integers[i] + (call.is_address[i] ? reinterpret_cast<int64_t>(memory) : 0);
        const auto kernel = reinterpret_cast<Kernel>(find(library, call.name));
        kernel(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], call.floats[0], call.floats[1]);
    }
    std::FILE *result = std::fopen(words[3], "wb");
    if (!result || std::fwrite(memory, 1, size, result) != size_t(size) || std::fclose(result) != 0)
        fail("the result cannot be written");
    return 0;
}
