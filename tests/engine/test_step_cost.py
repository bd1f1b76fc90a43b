"""The simulated schedule is the engine's; its costs are kept, and worked out right for other devices."""

from __future__ import annotations

import pytest
import transformers

from tests.engine.forests import FORESTS, collect, requests_for
from treeshare.config import EngineConfig
from treeshare.engine import step_cost
from treeshare.engine.engine import Engine
from treeshare.engine.plan import computed_tree
from treeshare.engine.step_cost import DeviceCost, step_cost_here
from treeshare.models import describe_model, load_model
from treeshare.sampling import SamplingParams
from treeshare.tree import PromptTree
from treeshare.tree.forecast import Limits, forecast


@pytest.fixture
def cost(model_dir, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return step_cost_here(describe_model(model_dir("llama"), "float32"))


def test_a_cost_is_measured_once(cost, model_dir, monkeypatch, tmp_path):
    (path,) = (tmp_path / "treeshare" / "step_cost").iterdir()
    monkeypatch.setattr(step_cost, "measure_step_cost", lambda _: pytest.fail("measured again"))
    described = describe_model(model_dir("llama"), "float32")
    assert step_cost_here(described) == cost
    path.write_text("{")
    monkeypatch.setattr(step_cost, "measure_step_cost", lambda _: cost)
    assert step_cost_here(described) == cost
    assert path.read_text() == cost.model_dump_json()


def test_a_cost_grows_with_what_is_done(cost):
    assert cost.num_layers == 3
    assert 0 < cost.decode_s(1, 0, 0) <= cost.decode_s(256, 0, 0) < cost.decode_s(512, 0, 0)
    assert cost.decode_s(256, 10**9, 0) > cost.decode_s(256, 0, 0) + 0.01
    assert 0 < cost.prefill_s(100, 0) < cost.prefill_s(10_000, 0) < cost.prefill_s(10_000, 10**10)


def test_a_device_by_its_data_sheet(model_dir):
    described = describe_model(model_dir("llama"), "float32")
    own = transformers.AutoModelForCausalLM.from_pretrained(model_dir("llama"))
    num_weights = sum(weight.numel() for weight in own.parameters())
    cost = DeviceCost.of_model(described, flops=1e9, memory_bytes_s=1e6)
    assert cost.prefill_s(10, 7) == pytest.approx((20 * num_weights + 7 * 4 * 3 * 4 * 16) / 1e9)
    assert cost.decode_s(1, 0, 0) == pytest.approx(4 * num_weights / 1e6)  # memory
    keys = described.geometry.bytes_per_token
    assert cost.decode_s(4, 400, 8) == pytest.approx((4 * num_weights + 108 * keys) / 1e6)
    fast = DeviceCost.of_model(described, flops=1e6, memory_bytes_s=1e15)
    assert fast.decode_s(4, 0, 0) == pytest.approx(8 * num_weights / 1e6)  # arithmetic


@pytest.mark.parametrize("max_num_seqs", [5, 64])
@pytest.mark.parametrize("forest", FORESTS)
def test_the_schedule_is_the_engines(model_dir, forest, max_num_seqs):
    config = EngineConfig(max_num_seqs=max_num_seqs, page_size=16, lazy_divergence=False, fold=False)
    loaded = load_model(model_dir("llama"), "float32")
    engine = Engine(loaded, config)
    params = SamplingParams(n=4, temperature=1.0, max_tokens=40, ignore_eos=True)
    requests = requests_for(FORESTS[forest], params)
    collect(engine, requests)
    limits = Limits(
        max_num_seqs=max_num_seqs,
        kv_budget_bytes=engine.store.budget_bytes,
        kept=loaded.geometry.kept,
        page_size=16,
    )
    tree = computed_tree(PromptTree.from_prompts(FORESTS[forest]), config)
    cost = DeviceCost.of_model(describe_model(model_dir("llama")), flops=1e12, memory_bytes_s=1e12)
    told = forecast(tree, [4] * len(requests), [40] * len(requests), limits, cost)
    assert told.num_steps == engine.stats.num_steps
    assert told.unique_tokens == engine.stats.prefilled_tokens
    assert told.generated_tokens == engine.stats.num_tokens
    assert 0.8 * engine.stats.peak_kv_bytes <= told.peak_kv_bytes <= engine.stats.peak_kv_bytes
