// Included before every source of a wheel (scripts/build_wheels.sh): asks for the C library's functions as glibc 2.28
// has them. Those of 2.29 compute the same, and only leave errno alone.

#if defined(__x86_64__)
__asm__(".symver log, log@GLIBC_2.2.5");
#elif defined(__aarch64__)
__asm__(".symver log, log@GLIBC_2.17");
#endif
