"""What ``treeshare verify`` compares, and that each line of it can fail."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch

from tests.engine.forests import random_prompts, requests_for
from treeshare.attention import key_blocks, native_plan
from treeshare.attention.native import NativeAttention
from treeshare.config import EngineConfig, FoldCost
from treeshare.engine import token_step
from treeshare.engine.runner import ModelRunner
from treeshare.engine.verify import FaultyRunner, Verification, compare_company, compare_sharing
from treeshare.errors import ConfigError
from treeshare.models import load_model
from treeshare.sampling import SamplingParams

CONFIG = EngineConfig(fold_cost=FoldCost(launch_cost=0, merge_cost=0))
PROMPTS = random_prompts((180, [(40, [(20, []), (30, [])]), (41, []), (60, [])]))
REQUESTS = requests_for(PROMPTS, SamplingParams(n=2, temperature=0.8, max_tokens=6, ignore_eos=True))
CONTROL = "control: an inserted fault"
WAYS = {
    "each prompt alone": 8,
    "every second prompt": 4,
    "n = 1": 4,
    "n = 4": 8,
    "prompts in reverse order": 8,
    "max_num_seqs = 2": 8,
    "a row for each completion": 8,
    "sharing: one-level": 8,
    "sharing: none": 8,
    CONTROL: 8,
}
"""Completions compared, by way."""


@pytest.fixture(scope="module", params=["bfloat16", pytest.param("float32", marks=pytest.mark.slow)])
def loaded(model_dir, request):
    return load_model(model_dir("llama"), request.param)


@pytest.fixture(scope="module")
def exact(loaded):
    """A model whose rows keep their bits in any company."""
    if not keeps_bits(loaded):
        pytest.skip("no compiled kernel for this dtype")
    return loaded


def keeps_bits(loaded):
    return NativeAttention.can_read(loaded.geometry)


def verified(loaded, config=CONFIG, requests=REQUESTS):
    verification = Verification(loaded, config, requests)
    return {way.name: result for way, result in verification.run()}


def others(results):
    """The lines that see a difference, without the control's."""
    return {name for name, result in results.items() if not result.is_same} - {CONTROL}


# -- without a fault --


def test_every_way_is_compared(loaded):
    results = verified(loaded)
    assert {name: result.num_completions for name, result in results.items()} == WAYS
    for name, result in results.items():
        if name != CONTROL:
            assert result.num_same == result.num_completions
            assert result.num_positions == 6 * result.num_completions
    assert not results[CONTROL].is_same
    assert results[CONTROL].max_difference > 0
    if keeps_bits(loaded):
        assert not others(results)
        assert all(result.max_difference == 0 for name, result in results.items() if name != CONTROL)


def test_the_ways_are_what_their_names_say():
    verification = Verification(None, CONFIG, REQUESTS)
    ways = {way.name: way for way in (*verification.ways, verification.control)}
    calls = {name: [list(call) for call in way.calls] for name, way in ways.items()}
    assert calls.pop("each prompt alone") == [[0], [1], [2], [3]]
    assert calls.pop("every second prompt") == [[0, 2]]
    assert calls.pop("prompts in reverse order") == [[3, 2, 1, 0]]
    assert all(places == [[0, 1, 2, 3]] for places in calls.values())
    for way in ways.values():
        for place, request in (item for call in way.calls for item in call.items()):
            n = {"n = 1": 1, "n = 4": 4}.get(way.name, 2)
            params = replace(REQUESTS[place].params, n=n)
            assert request == replace(REQUESTS[place], params=params, completion_indices=range(n))
    changed = {name: way.config for name, way in ways.items() if way.config != CONFIG}
    rows = replace(CONFIG.fold_cost, max_rows=2)
    assert changed == {
        "max_num_seqs = 2": replace(CONFIG, max_num_seqs=2, fold_cost=rows),
        "a row for each completion": replace(CONFIG, lazy_divergence=False),
        "sharing: one-level": replace(CONFIG, sharing="one-level"),
        "sharing: none": replace(CONFIG, sharing="none"),
    }
    assert [name for name, way in ways.items() if way.runner is not ModelRunner] == [CONTROL]


def test_what_is_shared(loaded):
    shared = Verification(loaded, CONFIG, REQUESTS).shared
    assert (shared.num_nodes, shared.num_tokens, shared.num_prompts) == (2, 220, 4)
    # A prompt that is another's beginning ends above the cut.
    shared = Verification(
        None, CONFIG, requests_for([PROMPTS[0][:50], PROMPTS[0]], REQUESTS[0].params)
    ).shared
    assert (shared.num_nodes, shared.num_tokens, shared.num_prompts) == (1, 50, 1)


def test_progress_counts_every_completion(loaded):
    verification, calls = Verification(loaded, CONFIG, REQUESTS), Counter()
    list(verification.run(lambda: calls.update(["completion"])))
    assert calls["completion"] == verification.num_completions == 8 + sum(WAYS.values()) + 8


@pytest.mark.parametrize(
    ("prompts", "config", "num_common"),
    [
        (random_prompts((0, [(40, []), (41, [])])), CONFIG, 0),
        (random_prompts((3, [(40, []), (41, [])])), replace(CONFIG, fold_cost=FoldCost()), 3),
        (PROMPTS, replace(CONFIG, sharing="none"), 220),
        ([PROMPTS[0], PROMPTS[0]], CONFIG, 240),
    ],
    ids=["nothing in common", "too short to be a node", "sharing off", "one prompt twice: no cut"],
)
def test_no_shared_node_is_an_error(prompts, config, num_common):
    with pytest.raises(ConfigError) as caught:
        Verification(None, config, requests_for(prompts, REQUESTS[0].params))
    got = f"got {len(prompts)} prompts of which no node is shared (at most {num_common} tokens are equal)"
    assert str(caught.value).startswith(f"verify: {got}, expected a shared node; ")
    assert "--shots" in str(caught.value)


# -- with a fault: the right line sees it --


def disturb_logits(monkeypatch, when):
    """Logits of half of the tokens are off where ``when(runner, layout)`` holds."""
    forward = ModelRunner.forward

    def disturbed(self, layout, tokens, logits_rows):
        logits = forward(self, layout, tokens, logits_rows)
        if not when(self._config, layout):
            return logits
        logits = logits.clone()
        logits[:, ::2] += 0.5
        return logits

    monkeypatch.setattr(ModelRunner, "forward", disturbed)


def num_prompts(layout):
    return len({row.segment for row in layout.decodes})


RUNNER_FAULTS = {
    "company": (lambda _, layout: num_prompts(layout) > 1, {"each prompt alone"}),
    "many prompts": (
        lambda _, layout: num_prompts(layout) > 2,
        {"each prompt alone", "every second prompt", "max_num_seqs = 2"},
    ),
    "many rows": (lambda _, layout: len(layout.decodes) > 4, {"each prompt alone", "max_num_seqs = 2"}),
    "the row limit": (lambda config, _: config.max_num_seqs == 2, {"max_num_seqs = 2"}),
    "rows": (lambda config, _: not config.lazy_divergence, {"a row for each completion"}),
    "one-level": (lambda config, _: config.sharing == "one-level", {"sharing: one-level"}),
    "none": (lambda config, _: config.sharing == "none", {"sharing: none"}),
    "order": (
        lambda _, layout: bool(layout.causal) and layout.causal[-1].segment.num_tokens == 60,
        {"prompts in reverse order"},
    ),
}
"""When the runner's logits are off, and the lines that must see it."""


@pytest.mark.parametrize("name", RUNNER_FAULTS)
def test_a_fault_in_the_runner_is_seen(loaded, monkeypatch, name):
    when, seen = RUNNER_FAULTS[name]
    disturb_logits(monkeypatch, when)
    results = verified(loaded)
    for way in seen:
        assert results[way].num_same < results[way].num_completions, way
        assert results[way].num_same_logprobs < results[way].num_completions, way
        assert results[way].max_difference > 0.1, way
    if name in ("the row limit", "rows", "one-level", "none") and keeps_bits(loaded):
        assert others(results) == seen


def test_blocks_that_begin_at_a_cut_are_seen(exact, monkeypatch):
    """As it was: a node's keys in blocks of their own, so that the tree decides how sums are cut."""

    def slices(layout):
        parts = [
            key_blocks.BlockSlice(first, last, key_blocks.pieces(segment, segment.start, segment.end))
            for segment, first, last in layout.slices
        ]
        for chunk in layout.causal:
            own = key_blocks.pieces(chunk.segment, chunk.segment.start, chunk.segment.start + chunk.end)
            parts.append(key_blocks.BlockSlice(chunk.first_row, chunk.last_row, own, chunk.start))
        return parts

    monkeypatch.setattr(native_plan, "block_slices", slices)
    seen = others(verified(exact))
    assert {"each prompt alone", "sharing: none"} <= seen  # one level moves few cuts: rounding may hide them
    assert "prompts in reverse order" not in seen


def disturb_sampling(monkeypatch, change):
    """``change(numbers, specs)`` is what is drawn with."""
    sample = token_step.sample
    monkeypatch.setattr(
        token_step,
        "sample",
        lambda logits, specs, rows, u, hooks: sample(logits, specs, rows, change(u, specs), hooks),
    )


def test_company_in_sampling_is_seen(loaded, monkeypatch):
    disturb_sampling(monkeypatch, lambda u, _: u * 0.8 if len(u) > 2 else u)
    results = verified(loaded)
    assert results["each prompt alone"].num_same < 8
    assert results["max_num_seqs = 2"].num_same < 8


def test_a_token_that_depends_on_n_is_seen(loaded, monkeypatch):
    disturb_sampling(monkeypatch, lambda u, specs: u if specs[0].params.n == 2 else u * 0.8)
    results = verified(loaded)
    assert {name for name, result in results.items() if result.num_same < result.num_completions} - {
        CONTROL
    } == {"n = 1", "n = 4"}


def test_a_log_probability_alone_is_seen(loaded, monkeypatch):
    """Tokens and logits are the same, what the user is told is not."""
    sample = token_step.sample

    def changed(logits, specs, rows, u, hooks):
        sampled = sample(logits, specs, rows, u, hooks)
        return replace(sampled, logprobs=sampled.logprobs * (1 + 1e-6)) if len(u) > 2 else sampled

    monkeypatch.setattr(token_step, "sample", changed)
    result = verified(loaded)["each prompt alone"]
    assert (result.num_same, result.num_same_logprobs) == (8, 0)
    assert result.max_difference > 0
    if keeps_bits(loaded):
        assert result.num_identical == result.num_positions


def test_a_number_that_is_none_is_seen(exact, monkeypatch):
    forward = ModelRunner.forward

    def disturbed(self, layout, tokens, logits_rows):
        logits = forward(self, layout, tokens, logits_rows)
        if self._config.sharing != "none":
            return logits
        logits = logits.clone()
        logits[:, 7] = math.nan
        return logits

    monkeypatch.setattr(ModelRunner, "forward", disturbed)
    monkeypatch.setattr(token_step, "sample", _without_nan(token_step.sample))
    assert compare_sharing(exact, CONFIG, REQUESTS).max_difference == math.inf


def _without_nan(sample):
    return lambda logits, *rest: sample(torch.nan_to_num(logits, nan=-50.0), *rest)


def test_the_control_is_not_seen_where_no_fault_is_put_in(exact, monkeypatch):
    monkeypatch.setattr(FaultyRunner, "forward", ModelRunner.forward)
    assert verified(exact)[CONTROL].is_same


def test_compare_company_and_sharing(loaded, monkeypatch):
    for compare in (compare_company, compare_sharing):
        result = compare(loaded, CONFIG, REQUESTS)
        assert result.num_same == result.num_completions == 8
        assert result.num_positions == 48
        assert not keeps_bits(loaded) or result.num_identical == 48
    disturb_logits(monkeypatch, lambda _, layout: num_prompts(layout) > 1)
    assert compare_company(loaded, CONFIG, REQUESTS).num_same < 8
