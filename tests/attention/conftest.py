"""Triton's kernels run interpreted here, unless ``TRITON_INTERPRET=0`` is set (a CUDA device)."""

from __future__ import annotations

import os

os.environ.setdefault("TRITON_INTERPRET", "1")  # Triton reads it once, when it is first imported
