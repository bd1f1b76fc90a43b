"""The compiled kernels: C++ sources, and the library that is built from them."""

from treeshare.native.library import kernels

__all__ = ["kernels"]
