// The operating system's permission to use tiles.

#pragma once

#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif

// Whether this process may use tiles: it asks, for all its threads and the processes that it will fork, and is not
// asked to give anything back. Linux refuses where a thread's stack for signals is too small for tiles, a sandbox where
// it knows no such request, and a system other than Linux is not known.
inline bool may_use_tiles() {
#if defined(__linux__) && defined(SYS_arch_prctl)
    constexpr long REQUEST_PERMISSION = 0x1023, TILES = 18; // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILE_DATA
    return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILES) == 0;
#else
    return false;
#endif
}
