"""Models whose layers see a window: the KV that they keep, in any company and within any budget."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import transformers

from tests.engine.forests import collect, greedy_by_transformers, requests_for, tokens_of
from tests.models.tiny import _COMMON, make_model
from treeshare.config import EngineConfig
from treeshare.engine.engine import Engine
from treeshare.models import load_model
from treeshare.sampling import SamplingParams

WINDOW, PAGE = 20, 16
PROMPTS = [[*range(3, 40), own] for own in (50, 60, 70)]
PARAMS = SamplingParams(n=4, temperature=0.9, max_tokens=66, ignore_eos=True)
CONFIGS = {
    "all layers": {"sliding_window": WINDOW},
    "some layers": {
        "sliding_window": WINDOW,
        "use_sliding_window": True,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
}


@pytest.fixture(scope="module", params=sorted(CONFIGS))
def folder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("windows")
    kind = transformers.MistralConfig if request.param == "all layers" else transformers.Qwen2Config
    make_model(kind(**_COMMON, **CONFIGS[request.param])).save_pretrained(path)
    return path


def engine_of(folder, dtype="float32", **config):
    config = {"page_size": PAGE, "max_num_seqs": 12} | config
    return Engine(load_model(folder, dtype), EngineConfig(**config), check_invariants=True)


@pytest.fixture(scope="module")
def greedy(folder):
    """Transformers' own greedy tokens of each prompt, more than a window."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return [greedy_by_transformers(model, prompt, 2 * WINDOW) for prompt in PROMPTS]


@pytest.mark.parametrize("backend", ["auto", "cpu", "reference"])
def test_tokens_are_transformers_own(folder, greedy, backend):
    params = replace(PARAMS, n=2, temperature=0.0, max_tokens=2 * WINDOW)
    engine = engine_of(folder, backend=backend)
    got = tokens_of(collect(engine, requests_for(PROMPTS, params)))
    for i, expected in enumerate(greedy):
        assert got[i, 0] == got[i, 1] == expected


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_company_and_a_small_budget_change_no_bit(folder, dtype):
    """A budget for few windows: rows are taken away and computed again, from keys that were given back."""
    requests = requests_for(PROMPTS, PARAMS)
    whole = engine_of(folder, dtype)
    expected = collect(whole, requests)
    token_bytes = whole.store.geometry.bytes_per_token
    tight = engine_of(folder, dtype, kv_budget_bytes=(64 * 3 + 600) * token_bytes)
    assert collect(tight, requests) == expected
    assert tight.stats.peak_kv_bytes <= (64 * 3 + 600) * token_bytes
    alone = {}
    for index, request in enumerate(requests):
        for completion in request.completion_indices[::3]:
            one = replace(request, completion_indices=[completion])
            alone[index, completion] = replace(collect(whole, [one])[0, completion], request_index=index)
    assert alone == {key: expected[key] for key in alone}


def test_windows_bound_what_completions_take(folder):
    """In the layers with a window, a completion of any length takes no more than the window's pages."""
    engine = engine_of(folder, lazy_divergence=False)
    collect(engine, requests_for(PROMPTS, PARAMS))
    kept = sum(
        size * (-(-65 // PAGE) if reach is None else -(-(reach - 1) // PAGE) + 1) * PAGE
        for size, reach in engine.store.geometry.kept
    )
    assert engine.store.tables.bytes_of(65) == kept < 65 * engine.store.geometry.bytes_per_token
    prompts = engine.store.segments.bytes_of(37) + 3 * engine.store.segments.bytes_of(1)
    assert engine.stats.peak_kv_bytes <= 12 * kept + prompts


def test_a_budget_of_windows_holds_long_completions(folder):
    engine = engine_of(folder)
    geometry = engine.store.geometry
    engine = engine_of(folder, kv_budget_bytes=160 * geometry.bytes_per_token)
    longest = engine.longest_completion(32)
    has_full = None in geometry.reaches
    assert (longest < 200) if has_full else (longest == engine.loaded.max_model_len - 32)
