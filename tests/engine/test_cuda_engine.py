"""The engine on a CUDA device that is not there: its tokens, what it mixes, where it waits, its graphs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.engine.fake_device import CUDA, FakeDevice, OnDevice, install
from tests.engine.forests import random_prompts, requests_for
from tests.models.tiny import CONFIGS, make_model
from treeshare.attention.triton.shape import is_interpreted
from treeshare.config import EngineConfig
from treeshare.devices import upload
from treeshare.engine.engine import Engine
from treeshare.engine.scoring import score
from treeshare.engine.search import TokenSearch
from treeshare.models import load_model
from treeshare.models.cuda import CudaAdapter
from treeshare.sampling import SamplingParams

pytestmark = pytest.mark.usefixtures("quick_interpreter")

PROMPTS = random_prompts((9, [(3, []), (5, [])]))
PARAMS = SamplingParams(temperature=1.0, max_tokens=4, ignore_eos=True)
MANY_TOKENS = replace(PARAMS, max_tokens=19)
"""So many that a sequence takes a second page."""


@pytest.fixture
def device(monkeypatch):
    fake = FakeDevice()
    install(monkeypatch, fake)
    monkeypatch.setattr("treeshare.attention.triton.arrays.MIN_CAPACITY", 4)  # idle programs take time here
    with fake:
        yield fake


def engine_on(folder, name):
    return Engine(load_model(folder, "float32", name), EngineConfig(page_size=16, lazy_divergence=False))


def run(engine, params, device=None):
    """Tokens of all completions, and what each step waited for."""
    tokens, waits = {}, []
    for result in engine.run_steps(requests_for(PROMPTS, params)):
        tokens.update({(c.request_index, c.completion_index): c.token_ids for c in result.finished})
        if device is not None:
            waits.append(device.waits[:])
            device.waits.clear()
    return tokens, waits


@pytest.fixture(scope="module")
def two_layers(tmp_path_factory):
    """The folder of a llama with fewer layers and heads: Triton's interpreter takes its time for each."""
    config, path = CONFIGS["llama"](), tmp_path_factory.mktemp("two layers")
    config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads = 2, 2, 1
    make_model(config).save_pretrained(path)
    return path


def test_tokens_are_the_hosts_and_decoding_is_replayed(two_layers, device):
    check_tokens(two_layers, device, PARAMS)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen3", "phi3"])
def test_tokens_are_the_hosts_on_two_pages(model_dir, device, architecture):
    check_tokens(model_dir(architecture), device, MANY_TOKENS)


def check_tokens(folder, device, params):
    expected, _ = run(engine_on(folder, "cpu"), params)
    engine = engine_on(folder, "cuda")
    assert engine.store.device == CUDA
    assert engine.store.budget_bytes == 1 << 29
    assert all(isinstance(weight, OnDevice) for weight in engine.loaded.model.parameters())
    device.waits.clear()
    tokens, waits = run(engine, params, device)
    assert tokens == expected
    assert device.replays == params.max_tokens - 1
    assert 0 < device.graphs < device.replays
    decoding = waits[1:]
    assert decoding.count(["cpu"]) >= len(decoding) - device.graphs, (
        "a replayed step waits for its tokens alone"
    )


@pytest.mark.slow
def test_a_graph_is_not_the_step_it_was_captured_in(model_dir, device, monkeypatch):
    """A replay without the new step's inputs draws other tokens: the comparison above would find that."""
    folder = model_dir("llama")
    expected, _ = run(engine_on(folder, "cpu"), PARAMS)
    replay, first = CudaAdapter._replay, []

    def forgets_its_inputs(self, inputs, width, step):
        first.append(inputs)
        return replay(self, first[0], width, step)

    monkeypatch.setattr(CudaAdapter, "_replay", forgets_its_inputs)
    tokens, _ = run(engine_on(folder, "cuda"), PARAMS, device)
    assert tokens != expected


def test_scores_and_branches_are_the_hosts(two_layers, device):
    """Scoring and search hand their logits to the host, too."""
    pairs = [(PROMPTS[0], [3, 5, 7]), ([*PROMPTS[0], 9], [5])]
    found = []
    for name in ("cpu", "cuda"):
        engine = engine_on(two_layers, name)
        scores = score(engine, pairs, lambda _: None)
        with TokenSearch(engine, PROMPTS[1], max_tokens=3) as search:
            (branch,) = search.extend([(search.root, 4)])
            found.append((scores, search.root.logprobs, branch.logprobs))
    (expected, *expected_logprobs), (got, *got_logprobs) = found
    assert [score.is_greedy for score in got] == [score.is_greedy for score in expected]
    for ours, theirs in zip(got, expected, strict=True):
        np.testing.assert_array_almost_equal_nulp(np.float32(ours.logprobs), np.float32(theirs.logprobs), 64)
    for ours, theirs in zip(got_logprobs, expected_logprobs, strict=True):
        np.testing.assert_array_almost_equal_nulp(ours, theirs, 64)


def test_what_the_device_catches(device):
    here, there = torch.ones(3), torch.ones(3, device="cuda")
    with pytest.raises(AssertionError, match="mixes tensors"):
        here + there
    with pytest.raises(AssertionError, match="mixes tensors"):
        there[torch.tensor([0])]
    assert isinstance(there + 1, OnDevice)
    assert (there + torch.tensor(2.0)).sum().item() == 9
    assert there[there > 0].tolist() == [1, 1, 1]
    assert device.waits == ["item", "__getitem__", "tolist"]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = there * 2
        for wait in (there.cpu, there.sum().item, lambda: there[there > 0]):
            with pytest.raises(AssertionError, match="in a capture"):
                wait()
        with pytest.raises(AssertionError, match="in a capture"):
            here.to("cuda")
    there.fill_(5)
    assert result.tolist() == [2, 2, 2]
    graph.replay()
    assert result.tolist() == [10, 10, 10]


def on_a_gpu(test):
    """Marks a test that needs a real device."""
    test = pytest.mark.skipif(is_interpreted(), reason="kernels are interpreted; set TRITON_INTERPRET=0")(
        test
    )
    return pytest.mark.gpu(pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")(test))


@on_a_gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_on_a_gpu(model_dir, dtype):
    """Greedy tokens in float32 are the host's; in bfloat16 a run is the same as the one before it."""
    greedy = replace(MANY_TOKENS, temperature=0, n=1)
    loaded = load_model(model_dir("llama"), dtype, "cuda")
    config = EngineConfig(page_size=16)
    first, second = (run(Engine(loaded, config), greedy)[0] for _ in range(2))
    assert first == second
    if dtype == "float32":
        assert first == run(engine_on(model_dir("llama"), "cpu"), greedy)[0]


@on_a_gpu
def test_upload_to_a_gpu():
    numbers = torch.arange(1000).numpy()
    assert upload(numbers, CUDA).tolist() == numbers.tolist()
