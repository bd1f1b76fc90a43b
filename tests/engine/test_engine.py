"""The step loop: lengths, stops, refill, budget, and what is left behind."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.engine.forests import FORESTS, collect, requests_for, tokens_of
from tests.turns import by_turns
from treeshare.config import EngineConfig
from treeshare.engine.engine import Engine
from treeshare.errors import BudgetError, ConfigError
from treeshare.kv import PagePool
from treeshare.kv.segments import SegmentStore
from treeshare.models import load_model
from treeshare.sampling import SamplingParams

PARAMS = SamplingParams(n=4, temperature=1.0, max_tokens=30)


def make_engine(folder, **config):
    return Engine(load_model(folder, "float32"), EngineConfig(**config), check_invariants=True)


@pytest.fixture(scope="module")
def engine(model_dir):
    return make_engine(model_dir("llama"), page_size=16)


def test_ends(engine):
    """Completions end at end-of-sequence, at a stop token, or at max_tokens; never later."""
    params = replace(PARAMS, n=60, stop_token_ids=[7, 9])
    completions = collect(engine, requests_for(FORESTS["depth 1"], params)).values()
    reasons = set()
    for completion in completions:
        *before, last = completion.token_ids
        assert not {1, 7, 9} & set(before)
        if completion.finish_reason == "length":
            assert len(completion.token_ids) == 30
            assert completion.stop_reason is None
        else:
            assert completion.stop_reason == (None if last == 1 else last)
            assert last in (1, 7, 9)
        reasons.add((completion.finish_reason, completion.stop_reason))
    assert reasons == {("length", None), ("stop", None), ("stop", 7), ("stop", 9)}


def test_min_tokens_and_max_tokens_one(engine):
    params = replace(PARAMS, n=40, min_tokens=10, stop_token_ids=list(range(2, 100)))
    for completion in collect(engine, requests_for(FORESTS["depth 0"], params)).values():
        assert 10 < len(completion.token_ids) <= 30
        assert not {1, *range(2, 100)} & set(completion.token_ids[:10])
    completions = collect(engine, requests_for(FORESTS["depth 2"], replace(PARAMS, max_tokens=1)))
    assert all(len(completion.token_ids) == 1 for completion in completions.values())
    assert len(completions) == 16


def test_refill(engine, model_dir):
    """Five rows serve 60 completions; nothing is left allocated and no token changes."""
    params = replace(PARAMS, n=15)
    requests = requests_for(FORESTS["depth 2"], params)
    few = make_engine(model_dir("llama"), page_size=16, max_num_seqs=5)
    assert tokens_of(collect(few, requests)) == tokens_of(collect(engine, requests))
    assert few.stats.num_finished == 60
    assert few.stats.num_rows <= 5 * few.stats.num_steps


def test_greedy_completions_are_one_row(engine):
    params = SamplingParams(n=64, temperature=0, max_tokens=20, ignore_eos=True)
    collect(engine, requests_for(FORESTS["depth 0"], params))
    assert engine.stats.num_tokens == 64 * 20
    assert engine.stats.num_rows == 19


def test_unique_tokens_are_prefilled_once(model_dir):
    engine = make_engine(model_dir("llama"), fold=False)
    collect(engine, requests_for(FORESTS["depth 4"], PARAMS))
    assert engine.stats.prefilled_tokens == engine.stats.unique_tokens < engine.stats.logical_tokens


def test_leaving_early_frees_everything(engine):
    requests = requests_for(FORESTS["depth 1"], PARAMS)
    completions = engine.run(requests)
    next(completions)
    completions.close()
    assert len(collect(engine, requests)) == 12


PLACES = {
    "new_page": (PagePool, "new_page"),
    "copy": (PagePool, "copy"),
    "free": (PagePool, "free"),
    "release": (SegmentStore, "release"),
    "reserve": (SegmentStore, "reserve"),
    "write": (SegmentStore, "write"),
}
"""Where a step may be cut short between two changes of the store."""


@pytest.mark.parametrize("place", ["new_page", "copy", "free", "release"])
def test_an_interrupt_between_two_changes_passes_through(engine, monkeypatch, place):
    """Ctrl-C may come when a page has no owner yet or no more; it stays a Ctrl-C, and the engine goes on."""
    requests = requests_for(FORESTS["depth 1"], PARAMS)
    expected = tokens_of(collect(engine, requests))
    target, name = PLACES[place]
    change, calls = getattr(target, name), []

    def interrupted(self, *args):
        result = change(self, *args)
        calls.append(None)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return result

    with monkeypatch.context() as patch:
        patch.setattr(target, name, interrupted)
        with pytest.raises(KeyboardInterrupt):
            collect(engine, requests)
    assert tokens_of(collect(engine, requests)) == expected


def test_an_error_inside_a_step_frees_everything(engine, monkeypatch):
    requests = requests_for(FORESTS["depth 1"], PARAMS)
    calls = []

    def broken(*args, **kwargs):
        calls.append(None)
        if len(calls) == 5:
            raise RuntimeError("injected")
        return forward(*args, **kwargs)

    forward = engine.runner.forward
    monkeypatch.setattr(engine.runner, "forward", broken)
    with pytest.raises(RuntimeError, match="injected"):
        collect(engine, requests)
    monkeypatch.undo()
    assert len(collect(engine, requests)) == 12


def smallest_budget(loaded, requests, **config):
    """The budget that the refusal of a tiny one names."""
    with pytest.raises(BudgetError) as caught:
        collect(Engine(loaded, EngineConfig(kv_budget_bytes=1, **config)), requests)
    assert "\n" not in str(caught.value)
    return int(str(caught.value).split("at least ")[1].split()[0])


@pytest.mark.parametrize(
    ("fold", "forest"), by_turns([True, False], ["depth 2", "depth 4", "no sharing", "a prefix of another"])
)
def test_the_smallest_budget_suffices(engine, forest, fold):
    """With the bytes that the refusal asks for, the run ends, within them, with the same tokens."""
    requests = requests_for(FORESTS[forest], replace(PARAMS, n=2))
    config = {"page_size": 16, "fold": fold}
    budget = smallest_budget(engine.loaded, requests, **config)
    config = EngineConfig(kv_budget_bytes=budget, **config)
    tight = Engine(engine.loaded, config, check_invariants=True)
    assert tokens_of(collect(tight, requests)) == tokens_of(collect(engine, requests))
    assert tight.stats.peak_kv_bytes <= budget
    with pytest.raises(BudgetError, match=f"at least {budget}"):
        collect(Engine(engine.loaded, replace(config, kv_budget_bytes=budget - 1)), requests)


BAD_PROMPTS = {
    "prompts[1]: got an empty prompt": [[5], []],
    "prompts[0]: got '1024 tokens', expected \"fewer": [[5] * 1024],
    "prompts[0]: got 160, expected token ids in [0, 160)": [[5, 160]],
}


@pytest.mark.parametrize("message", BAD_PROMPTS)
def test_bad_prompts(engine, message):
    with pytest.raises(ConfigError) as caught:
        collect(engine, requests_for(BAD_PROMPTS[message], PARAMS))
    assert str(caught.value).replace("expected fewer", 'expected "fewer').startswith(message)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stop_token_ids": [3, 160]}, r"stop_token_ids: got 160, expected token ids in \[0, 160\)"),
        ({"stop_token_ids": range(160), "min_tokens": 1}, "stop_token_ids: got 'all tokens'"),
    ],
)
def test_stop_tokens_that_would_break_a_step_are_refused_before(engine, options, message):
    options = options | {"stop_token_ids": list(options["stop_token_ids"])}
    with pytest.raises(ConfigError, match=message):
        collect(engine, requests_for([[5, 6]], replace(PARAMS, **options)))
    assert engine.is_idle


def test_the_model_length_ends_completions(engine):
    prompt = FORESTS["depth 0"][0] * 145  # 1015 of 1024 tokens
    completions = collect(engine, requests_for([prompt], replace(PARAMS, ignore_eos=True)))
    assert {len(completion.token_ids) for completion in completions.values()} == {9}


def test_nothing_to_do(engine):
    assert collect(engine, []) == {}
    requests = [replace(r, completion_indices=[]) for r in requests_for(FORESTS["depth 1"], PARAMS)]
    assert collect(engine, requests) == {}


def test_one_page_more_than_fits_is_needed_only_when_reached(engine):
    """Pages are taken as completions grow: 1 + 16 tokens need one page of 16, one more needs two."""
    for max_tokens, num_pages in ((17, 1), (18, 2)):
        params = SamplingParams(n=1, max_tokens=max_tokens, ignore_eos=True)
        collect(engine, requests_for(FORESTS["depth 0"], params))
        per_token = engine.loaded.geometry.bytes_per_token
        assert engine.stats.peak_kv_bytes == (64 + 16 * num_pages) * per_token
