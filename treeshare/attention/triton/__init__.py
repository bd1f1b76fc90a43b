"""Tree attention on GPUs by Triton kernels; Triton itself is imported with the kernels, on first use."""

from treeshare.attention.triton.backend import TritonAttention

__all__ = ["TritonAttention"]
