"""Books that a server keeps for months: bounded, and no older than what happens now."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.engine.forests import requests_for
from treeshare.config import EngineConfig
from treeshare.engine.engine import Engine
from treeshare.engine.expectation import HORIZONS, Expectation
from treeshare.engine.stats import LATEST_STEPS, EngineStats, StepLog
from treeshare.kv import KVGeometry, KVStore
from treeshare.models import load_model
from treeshare.sampling import SamplingParams


def test_steps_are_bounded_and_the_longest_is_kept():
    """Against all steps ever: the latest ones as they were, and the longest of all with its rows."""
    rng = np.random.default_rng(0)
    log, steps = StepLog(), []
    for number in range(3 * LATEST_STEPS):
        seconds = float(rng.integers(1, 50)) + 1000 * (number == 17)
        steps.append((seconds, (number, 2 * number)))
        log.note(seconds, number, 2 * number)
        if number % 500 < 3:
            assert log.longest == max(steps, key=lambda step: step[0])
    assert list(zip(log.seconds, log.rows, strict=True)) == steps[-LATEST_STEPS:]
    assert log.longest == steps[17]
    log.seconds[-1] = 1e6
    assert log.longest == (1e6, log.rows[-1])


def test_before_the_first_step():
    stats = EngineStats()
    assert (stats.longest_step_s, stats.median_step_s, stats.longest_step_rows) == (0.0, 0.0, (0, 0))


def make_expectation():
    geometry = KVGeometry.uniform(num_layers=1, num_kv_heads=1, head_dim=16, dtype=torch.float32)
    return Expectation(KVStore(geometry, budget_bytes=1 << 20, page_size=16).tables)


@pytest.mark.parametrize("before", [0, 100_000])
@pytest.mark.parametrize(("old", "new"), [(2, 300), (300, 2), (50, 60)])
def test_expected_lengths_follow_what_ends_now(before, old, new):
    """After some hundreds of others of one length the first 100,000 count for nothing."""
    expectation = make_expectation()
    for _ in range(before):
        expectation.note_end(old)
    for _ in range(6 * max(HORIZONS)):
        expectation.note_end(new)
    assert expectation.tokens(1000) == pytest.approx(new, abs=max(1.0, 0.01 * 1000))
    assert expectation.tokens(1) == 1


def test_longer_completions_are_noticed_soon():
    expectation = make_expectation()
    for _ in range(100_000):
        expectation.note_end(2)
    assert expectation.tokens(300) == 2
    for _ in range(48):
        expectation.note_end(300)
    assert expectation.tokens(300) > 280


def test_expected_lengths_of_a_steady_load_are_its_mean():
    """Little above it, because too short an expectation costs more."""
    rng = np.random.default_rng(1)
    expectation, found = make_expectation(), []
    for length in rng.geometric(1 / 100, 20_000).tolist():
        expectation.note_end(length)
        found.append(expectation.tokens(10_000))
    assert 95 < np.mean(found[2000:]) < 125


@pytest.mark.slow
@pytest.mark.parametrize("how", ["by length", "by stop tokens"])
def test_after_a_change_of_load_rows_are_preempted_as_in_a_fresh_engine(model_dir, how):
    """Very many short completions, then long ones under a tight budget."""
    loaded = load_model(model_dir("llama"), "float32")
    config = EngineConfig(kv_budget_bytes=loaded.geometry.bytes_per_token * 2400, keep_nodes=True)
    rng = np.random.default_rng(0)
    prompts = [rng.integers(2, 160, 10).tolist() for _ in range(24)]
    long = requests_for(prompts, SamplingParams(temperature=1.0, max_tokens=300, ignore_eos=True))
    short_params = SamplingParams(n=600, temperature=5.0, max_tokens=2, ignore_eos=True)
    if how == "by stop tokens":
        short_params = replace(short_params, max_tokens=300, stop_token_ids=range(0, 160, 2))
    short = requests_for(prompts[:3], short_params)

    def preemptions(is_fresh):
        engine = Engine(loaded, config)
        if not is_fresh:
            assert len(list(engine.run(short))) == 1800
        for _ in range(3):
            list(engine.run(long))
        return engine.stats.num_preemptions

    assert preemptions(is_fresh=False) <= preemptions(is_fresh=True) + 3
