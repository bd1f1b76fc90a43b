"""Which device a run takes, and how much of its memory; the devices are made up."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from treeshare.devices import default_kv_budget_bytes, resolve_device
from treeshare.errors import ConfigError


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: ({"cuda:1": 6 << 30}[device], 80 << 30))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.usefixtures("two_gpus")
def test_a_gpu_is_taken_where_it_can_be_used(monkeypatch):
    assert resolve_device("auto") == "cuda"
    assert resolve_device("cuda:1") == "cuda:1"
    assert resolve_device("cpu") == "cpu"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert resolve_device("auto") == "cpu"


@pytest.mark.usefixtures("two_gpus")
def test_the_budget_is_half_of_what_the_device_has_free():
    assert default_kv_budget_bytes("cuda:1") == 3 << 30


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize("name", ["cuda:2", "cuda:x", "tpu", "cpu:0", ""])
def test_devices_that_are_not_there(name):
    with pytest.raises(
        ConfigError, match=r"^device: got '.*', expected auto, cpu, or an available CUDA device"
    ):
        resolve_device(name)


@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu():
    assert resolve_device("auto") == "cpu"
    with pytest.raises(ConfigError, match=r"^device: got 'cuda', expected"):
        resolve_device("cuda")
