"""Tree attention: partial states, their merge, the batch layout, and the backends."""

from treeshare.attention.api import AttentionBackend, AttentionSpec
from treeshare.attention.choice import make_backend
from treeshare.attention.cpu import CpuAttention
from treeshare.attention.layout import BatchLayout, DecodeRow, PrefillChunk, build_layout, depth_first
from treeshare.attention.native import NativeAttention
from treeshare.attention.reference import ReferenceAttention
from treeshare.attention.state import AttentionState, merge_states
from treeshare.attention.triton import TritonAttention

__all__ = [
    "AttentionBackend",
    "AttentionSpec",
    "AttentionState",
    "BatchLayout",
    "CpuAttention",
    "DecodeRow",
    "NativeAttention",
    "PrefillChunk",
    "ReferenceAttention",
    "TritonAttention",
    "build_layout",
    "depth_first",
    "make_backend",
    "merge_states",
]
