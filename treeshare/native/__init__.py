"""The compiled kernels: C++ sources, and the library that is built from them."""

from treeshare.native.library import (
    ELEMENTS,
    PORTABLE,
    functions,
    int8_code,
    int8_codes,
    int8_kernels,
    kernel_level,
    kernel_levels,
    kernels,
    level_code,
    number_of,
    unused_notice,
    unused_reason,
    unused_remedy,
    warn_where_unused,
)

__all__ = [
    "ELEMENTS",
    "PORTABLE",
    "functions",
    "int8_code",
    "int8_codes",
    "int8_kernels",
    "kernel_level",
    "kernel_levels",
    "kernels",
    "level_code",
    "number_of",
    "unused_notice",
    "unused_reason",
    "unused_remedy",
    "warn_where_unused",
]
