"""Requests that come and go while others run: the same tokens, shared prefixes, nothing left."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
import transformers

from tests.engine.forests import (
    FORESTS,
    GREEDY,
    collect,
    greedy_by_transformers,
    random_prompts,
    requests_for,
    rows_taken_away,
    tokens_of,
)
from tests.turns import by_turns
from treeshare.config import EngineConfig
from treeshare.engine.engine import Engine
from treeshare.errors import ConfigError
from treeshare.kv import PagePool
from treeshare.kv.segments import SegmentStore
from treeshare.models import load_model
from treeshare.sampling import SamplingParams

PARAMS = SamplingParams(n=4, temperature=1.0, max_tokens=30)
SHORT = SamplingParams(n=2, temperature=1.0, max_tokens=6)
LONG = SamplingParams(n=6, temperature=1.0, max_tokens=24, ignore_eos=True)


def make_engine(folder, dtype="float32", **config):
    config = {"page_size": 16} | config
    return Engine(load_model(folder, dtype), EngineConfig(**config), check_invariants=True)


def beside(engine, **config):
    """Another engine of the same model."""
    return Engine(engine.loaded, EngineConfig(page_size=16, **config), check_invariants=True)


@pytest.fixture(scope="module")
def engine(model_dir):
    return make_engine(model_dir("llama"))


def drain(engine, at_step=()):
    """Step until idle; ``at_step`` maps a step to what is done before it. Returns completions by index."""
    found, step, at_step = {}, 0, dict(at_step)
    while not engine.is_idle or at_step:
        for action in at_step.pop(step, ()):
            action()
        step += 1
        for completion in engine.step().finished:
            found[completion.request_index, completion.completion_index] = completion
    return found


def later(engine, requests, gap=3):
    """Actions that add each request ``gap`` steps after the one before."""
    return {
        gap * i: [lambda request=request: engine.add_request(request)] for i, request in enumerate(requests)
    }


def as_of_run(completions, first):
    return {(request - first, index): c.token_ids for (request, index), c in completions.items()}


@pytest.mark.parametrize(("forest", "keep_nodes"), by_turns(FORESTS, [False, True]))
def test_arrivals_change_no_token(engine, forest, keep_nodes):
    requests = requests_for(FORESTS[forest], LONG)
    expected = tokens_of(collect(engine, requests))
    live = beside(engine, keep_nodes=keep_nodes, max_num_seqs=11)
    for _ in range(2):
        first = live._intake.num_requests
        assert as_of_run(drain(live, later(live, requests)), first) == expected
    if not keep_nodes:
        live.store.check_empty()


def test_a_prefix_is_found_while_it_lives_and_after(model_dir):
    """What a running prompt or a kept one has computed is not computed again."""
    (left, right) = random_prompts((500, [(60, []), (70, [])]))
    for keep_nodes, gap in ((False, 5), (True, 60)):
        live = make_engine(model_dir("llama"), keep_nodes=keep_nodes)
        requests = requests_for([left, right, [*right, 5]], replace(LONG, n=1))
        drain(live, later(live, requests, gap))
        assert 631 <= live.stats.prefilled_tokens <= 631 + 3 * 64
        assert (live.store.segments.num_live > 0) == keep_nodes


def test_requests_between_two_steps_are_one_tree(model_dir):
    live = make_engine(model_dir("llama"), fold=False)
    for request in requests_for(FORESTS["depth 4"], PARAMS):
        live.add_request(request)
    drain(live)
    assert live.stats.prefilled_tokens == live.stats.unique_tokens


def test_kept_nodes_give_way(engine):
    """An engine that keeps nodes runs other prompts within the same budget."""
    prompts = [random_prompts((300, []), seed=seed)[0] for seed in range(5)]
    per_token = engine.loaded.geometry.bytes_per_token
    live = beside(engine, keep_nodes=True, kv_budget_bytes=900 * per_token)
    for prompt in prompts:
        (request,) = requests_for([prompt], SHORT)
        assert tokens_of(collect(live, [request])) == tokens_of(collect(engine, [request]))
    assert 300 <= live.store.bytes_in_use / per_token <= 900


def test_cancel(engine):
    requests = requests_for(FORESTS["depth 2"], LONG)
    expected = tokens_of(collect(engine, requests))
    for step in (0, 1, 2, 9):
        first = engine._intake.num_requests
        for request in requests:
            engine.add_request(request)
        cancel = [partial(engine.cancel, first), partial(engine.cancel, first + 1, [0, 5])]
        cancel += [partial(engine.cancel, first + 2, []), partial(engine.cancel, first + 2, range(0))]
        found = as_of_run(drain(engine, {step: cancel}), first)
        gone = {(0, i) for i in range(6)} | {(1, 0), (1, 5)}
        assert found == {key: tokens for key, tokens in expected.items() if key not in gone}
        engine.store.check_empty()
        assert engine.cancel(first) == 0
    assert engine.cancel(10**6) == 0


@pytest.mark.parametrize("keep_nodes", [True, False])
@pytest.mark.parametrize("num_steps", [0, 3])
@pytest.mark.parametrize("prefix", [0, 150])
def test_a_prompt_that_is_given_up_is_computed_no_further(engine, keep_nodes, num_steps, prefix):
    """Next to one that goes on, with which it shares ``prefix`` tokens: as if it had never come."""
    engine = beside(engine, keep_nodes=keep_nodes, prefill_chunk=16)
    rest = [token % 60 + 2 for token in range(400)]
    given_up, other = requests_for([[*[3] * prefix, *rest], [*[3] * prefix, 9, 7, 5]], SHORT)
    engine.add_request(other)
    expected = {index: completion.token_ids for (_, index), completion in drain(engine).items()}
    needed = engine.stats.prefilled_tokens
    engine.clear()

    index = engine.add_request(given_up)
    engine.add_request(other)
    for _ in range(num_steps):
        engine.step()
    before = engine.stats.prefilled_tokens
    assert engine.cancel(index) == SHORT.n
    found = {index: completion.token_ids for (_, index), completion in drain(engine).items()}
    assert found == expected
    assert engine.stats.prefilled_tokens - before <= needed, "more than the other's prompt was computed"

    # It comes again: what was computed is there, and no bit is another.
    is_new = engine.stats.prefilled_tokens
    engine.add_request(given_up)
    again = [completion.token_ids for completion in drain(engine).values()]
    num_again = engine.stats.prefilled_tokens - is_new
    engine.clear()
    engine.add_request(given_up)
    assert again == [completion.token_ids for completion in drain(engine).values()]
    if keep_nodes and num_steps:
        assert num_again < len(given_up.prompt_token_ids)


def test_the_engine_is_one_at_a_time(engine):
    requests = requests_for(FORESTS["depth 1"], PARAMS)
    running = engine.run(requests)
    next(running)
    with pytest.raises(ConfigError, match="other requests are running"):
        collect(engine, requests)
    running.close()
    assert len(collect(engine, requests)) == 12


def budget_for(engine, requests, num_pages):
    """Bytes for the longest request and some pages more."""
    tokens = max(-(-len(r.prompt_token_ids) // 64) * 64 for r in requests)
    return (tokens + 16 * num_pages) * engine.loaded.geometry.bytes_per_token


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("lazy_divergence", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_preemption_changes_no_bit(model_dir, dtype, lazy_divergence):
    """Rows that lost their KV go on as if nothing had been."""
    ends = {"ignore_eos": False, "stop_token_ids": [7, 9, 11], "max_tokens": 40}
    params = replace(LONG, n=12, temperature=0.3, **ends)
    requests = requests_for(FORESTS["depth 2"], params)
    plenty = make_engine(model_dir("qwen2"), dtype, lazy_divergence=lazy_divergence)
    expected = collect(plenty, requests)
    assert plenty.stats.num_preemptions == 0
    for num_pages in (4, 9, 20):
        budget = budget_for(plenty, requests, num_pages)
        tight = beside(plenty, lazy_divergence=lazy_divergence, kv_budget_bytes=budget)
        got = collect(tight, requests)
        assert tight.stats.peak_kv_bytes <= budget
        if dtype == "float32":
            assert tokens_of(got) == tokens_of(expected)
        else:
            assert set(got) == set(expected)
    assert tight.stats.num_preemptions + tight.stats.num_replayed > 0


def test_a_preempted_row_has_the_same_bits(model_dir):
    """In bfloat16 too: on the same tree, rows that are taken away at random differ in nothing."""
    requests = requests_for(FORESTS["depth 3"], replace(LONG, n=5))
    for dtype in ("float32", "bfloat16"):
        engine = make_engine(model_dir("qwen2"), dtype)
        expected = collect(engine, requests)
        with rows_taken_away():
            got = collect(engine, requests)
        assert engine.stats.num_preemptions > 10
        assert got == expected


PLACES = {
    "new_page": (PagePool, "new_page"),
    "copy": (PagePool, "copy"),
    "free": (PagePool, "free"),
    "release": (SegmentStore, "release"),
    "reserve": (SegmentStore, "reserve"),
    "write": (SegmentStore, "write"),
}
"""Where a step may be cut short between two changes of the store; the ``cpu`` backend calls ``write``."""


@pytest.mark.parametrize("place", ["new_page", "copy", "release", "reserve", "write"])
def test_a_fault_inside_a_step_leaves_a_usable_engine(engine, model_dir, monkeypatch, place):
    if place == "write":
        engine = make_engine(model_dir("llama"), backend="cpu")
    requests = requests_for(FORESTS["depth 2"], replace(LONG, temperature=0.2))
    expected = tokens_of(collect(engine, requests))
    target, name = PLACES[place]
    change, calls = getattr(target, name), []

    def broken(self, *args, **kwargs):
        result = change(self, *args, **kwargs)
        calls.append(None)
        if len(calls) == 2:
            raise RuntimeError("injected")
        return result

    with monkeypatch.context() as patch:
        patch.setattr(target, name, broken)
        for request in requests:
            engine.add_request(request)
        with pytest.raises(RuntimeError, match="injected"):
            drain(engine)
    assert engine.is_idle
    assert tokens_of(collect(engine, requests)) == expected


def test_prompts_ride_along(model_dir):
    """A long prompt that comes while others decode takes as many rows a step as they do, and stops none."""
    live = make_engine(model_dir("llama"), prefill_chunk=16)
    (first, second) = random_prompts((0, [(20, []), (400, [])]))
    live.add_request(requests_for([first], replace(LONG, n=30, max_tokens=60))[0])
    for _ in range(8):
        live.step()
    rows = len(live.step().drawn)
    assert rows > 16
    live.add_request(requests_for([second], LONG)[0])
    before = live.stats.prefilled_tokens
    for _ in range(400 // 32):
        assert len(live.step().drawn) >= rows
        assert live.stats.prefilled_tokens - before <= 32
        before = live.stats.prefilled_tokens
    drain(live)
    live.store.check_empty()


@pytest.mark.parametrize("max_num_seqs", [64, 3])
def test_tokens_after_new_weights_are_transformers_own(model_dir, max_num_seqs):
    """Each stretch of tokens is transformers' own greedy continuation of all before it, by its weights."""
    engine = make_engine(model_dir("llama"), max_num_seqs=max_num_seqs)
    own = [
        transformers.AutoModelForCausalLM.from_pretrained(model_dir("llama"), dtype="float32")
        for _ in range(3)
    ]
    draws = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for later in own[1:]:
            for weight in later.parameters():
                weight.add_(0.2 * weight.std() * torch.randn(weight.shape, generator=draws))
    prompts = FORESTS["depth 2"]
    found = {}
    for step, result in enumerate(engine.run_steps(requests_for(prompts, replace(GREEDY, max_tokens=30)))):
        found |= {(c.request_index, c.completion_index): c for c in result.finished}
        if step in (8, 30):  # what was drawn is computed again first, a token a step
            engine.update_weights(dict(own[1 + step // 30].state_dict()))
            assert engine.store.bytes_in_use == 0
    drawn = set()
    for (which, _), completion in found.items():
        tokens, start = completion.token_ids, 0
        assert completion.weight_versions == sorted(completion.weight_versions)
        for version, model in enumerate(own):
            count = completion.weight_versions.count(version)
            if count:
                expected = greedy_by_transformers(model, prompts[which] + tokens[:start], count)
                assert tokens[start : start + count] == expected
                drawn.add(version)
            start += count
    assert drawn == {0, 1, 2}


def test_new_weights(model_dir):
    """Tokens after a change are those of the new weights on the old tokens; versions say which is which."""
    engine = make_engine(model_dir("llama"))
    requests = requests_for(FORESTS["depth 2"], LONG)
    old = tokens_of(collect(engine, requests))
    weights = {name: value.clone() for name, value in engine.loaded.model.state_dict().items()}
    changed = {name: value * 1.1 for name, value in weights.items() if "q_proj" in name}
    running = engine.run_steps(requests)
    found = {}
    for step, result in enumerate(running):
        found |= {(c.request_index, c.completion_index): c for c in result.finished}
        if step == 10:
            engine.update_weights(changed)
            assert engine.store.bytes_in_use == 0
    fresh = tokens_of(collect(engine, requests))
    assert fresh != old
    for key, completion in found.items():
        switch = completion.weight_versions.index(1)
        assert completion.weight_versions == [0] * switch + [1] * (LONG.max_tokens - switch)
        assert completion.token_ids[:switch] == old[key][:switch]
    assert any(c.token_ids != old[key] for key, c in found.items())
    engine.update_weights(weights)
    assert tokens_of(collect(engine, requests)) == old
