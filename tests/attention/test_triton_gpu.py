"""The Triton backend on a CUDA device: ``TRITON_INTERPRET=0 pytest -m gpu tests/attention``."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.attention.budget import Forest, assert_within_budget
from tests.attention.test_backends import DTYPES, FEATURES, FORESTS, LONG
from treeshare.attention import AttentionState, TritonAttention
from treeshare.attention.triton.shape import is_interpreted

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.skipif(is_interpreted(), reason="kernels are interpreted; set TRITON_INTERPRET=0"),
]


def on_gpu(case):
    """A forest whose store and inputs lie on the device; the oracle's stay."""
    forest = Forest(case)
    blocks = {id(segment.block): segment.block for segment in forest.segments}.values()
    for block in blocks:
        for tensors in (block.keys_t, block.values):
            tensors[:] = [tensor.cuda() for tensor in tensors]
    for tensors in (forest.store.pools[0].keys, forest.store.pools[0].values):
        tensors.update({layer: tensor.cuda() for layer, tensor in tensors.items()})
    return forest


def attend(forest, backend):
    query, key, value = (x.cuda() for x in (forest.query, forest.key, forest.value))
    sinks = None if forest.sinks is None else forest.sinks.cuda()
    return backend.attend(
        query, key, value, layer=0, layout=forest.layout, spec=forest.case.spec, sinks=sinks
    )


def on_cpu(state):
    return AttentionState(state.out.cpu(), state.lse.cpu())


@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 256])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FORESTS)
def test_forests(name, dtype, head_dim):
    forest = on_gpu(replace(FORESTS[name], dtype=DTYPES[dtype], head_dim=head_dim))
    state = attend(forest, TritonAttention(forest.store.geometry, "cuda"))
    assert_within_budget(forest, on_cpu(state))


@pytest.mark.parametrize("feature", FEATURES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["depth 6", "page borders", "mixed step", "long nodes"])
def test_features(name, dtype, feature):
    forest = on_gpu(replace((FORESTS | LONG)[name], dtype=DTYPES[dtype], **FEATURES[feature]))
    forest.give_back_unseen()
    state = attend(forest, TritonAttention(forest.store.geometry, "cuda"))
    assert_within_budget(forest, on_cpu(state))


@pytest.mark.parametrize("feature", ["none", "all"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_cutting_changes_no_bit(dtype, feature, monkeypatch):
    monkeypatch.setattr("treeshare.attention.triton.shape.CHUNK", 64)
    case = replace(FORESTS["block borders"], dtype=DTYPES[dtype], **FEATURES.get(feature, {}))
    forest = on_gpu(case)
    whole, cut = (
        attend(forest, TritonAttention(forest.store.geometry, "cuda", num_processors=number))
        for number in (0, 1000)
    )
    assert torch.equal(whole.out, cut.out)
    assert torch.equal(whole.lse, cut.lse)


def test_a_step_is_captured_in_a_graph():
    """A layer makes no copy to the device and no allocation that a graph cannot hold."""
    forest = on_gpu(replace(FORESTS["mixed step"], dtype=torch.bfloat16))
    backend = TritonAttention(forest.store.geometry, "cuda")
    inputs = [x.cuda() for x in (forest.query, forest.key, forest.value)]
    options = {"layer": 0, "layout": forest.layout, "spec": forest.case.spec}
    expected = backend.attend(*inputs, **options)  # compiles, and makes the plan
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = backend.attend(*inputs, **options)
    captured.out.zero_()
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(captured.out, expected.out)
