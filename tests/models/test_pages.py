"""Weights in large pages: the same numbers, in the same order."""

from __future__ import annotations

import ctypes

import pytest
import torch

from treeshare.models.pages import in_large_pages


@pytest.mark.parametrize("shape", [(3,), (0, 5), (1500, 1500), (4, 300, 2000)])
def test_a_copy(shape):
    tensor = torch.randn(shape)
    copy = in_large_pages(tensor)
    assert torch.equal(copy, tensor)
    assert copy.stride() == tensor.stride()
    assert copy.numel() == 0 or copy.data_ptr() != tensor.data_ptr()


def test_strides_stay():
    tensor = torch.randn(4, 300, 2000).transpose(1, 2)
    copy = in_large_pages(tensor)
    assert copy.stride() == tensor.stride()
    assert torch.equal(copy, tensor)


def test_a_system_without_them(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda _: (_ for _ in ()).throw(OSError("none")))
    tensor = torch.randn(1500, 1500)
    assert torch.equal(in_large_pages(tensor), tensor)
