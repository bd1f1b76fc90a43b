"""No step is much longer than the median, even while prompts arrive; a batch alone takes full steps."""

from __future__ import annotations

import statistics
from dataclasses import replace

import numpy as np
import pytest

from tests.engine.forests import collect, random_prompts, requests_for
from treeshare.config import MAX_PREFILL_ROWS, EngineConfig
from treeshare.engine.engine import Engine
from treeshare.engine.pace import MIN_LIVE_ROWS, Pace
from treeshare.models import load_model
from treeshare.sampling import SamplingParams


def test_prompts_alone_take_full_steps_unless_others_may_come():
    pace = Pace(16)
    assert pace.prompt_rows(0, 0) == pace.prompt_rows(0, 5) == 32
    assert pace.prompt_rows(0, 22) == 32  # 1.5 times as many, in whole chunks
    assert pace.prompt_rows(0, 64) == 96
    assert pace.prompt_rows(0, 1000) == MAX_PREFILL_ROWS
    pace.is_live = False
    assert pace.prompt_rows(0, 1) == MAX_PREFILL_ROWS
    assert pace.prompt_rows(64, 1) == 32
    assert pace.prompt_rows(3, 1) == 16  # a chunk at least: prompts do not starve


def test_rows_above_the_usual_leave_less_to_prompts():
    pace = Pace(16)
    for _ in range(9):
        pace.note(100)
    assert pace.prompt_rows(64, 0) == 32
    assert pace.prompt_rows(110, 0) == 32
    assert pace.prompt_rows(200, 0) == 16


@pytest.mark.parametrize("seed", range(2))
def test_steps_while_prompts_arrive(model_dir, seed):
    """Requests come by chance, some many at once; rows of any step stay near those of the median one."""
    engine = Engine(load_model(model_dir("llama"), "float32"), EngineConfig(page_size=16, max_num_seqs=64))
    rng = np.random.default_rng(seed)
    prompts = random_prompts((60, [(int(length), []) for length in rng.integers(5, 200, 14)]), seed=seed)
    params = SamplingParams(n=8, temperature=1.0, max_tokens=40, ignore_eos=True)
    waiting = requests_for(prompts, params)
    for request in [waiting.pop() for _ in range(4)]:
        engine.add_request(request)
    while waiting or not engine.is_idle:
        for _ in range(min(int(rng.poisson(0.08)), len(waiting))):
            engine.add_request(waiting.pop())
        engine.step()
    rows = [sum(both) for both in engine.stats.step_rows if sum(both)]
    assert len(engine.stats.step_rows) == len(engine.stats.step_s)
    assert all(prompt <= max(16, decoding // 2) for decoding, prompt in engine.stats.step_rows if decoding)
    assert max(rows) <= 2 * max(statistics.median(rows), MIN_LIVE_ROWS)


def test_a_run_computes_its_prompts_in_full_steps(model_dir):
    engine = Engine(load_model(model_dir("llama"), "float32"), EngineConfig(page_size=16))
    params = SamplingParams(n=2, temperature=1.0, max_tokens=8, ignore_eos=True)
    requests = requests_for(random_prompts((700, [(9, []), (8, [])])), params)
    collect(engine, requests)
    assert engine.stats.step_rows[0] == (0, MAX_PREFILL_ROWS)
    engine.add_request(replace(requests[0], completion_indices=range(2)))
    engine.step()
    assert engine.stats.step_rows[-1] == (0, 32)
    assert engine.stats.longest_step_rows in engine.stats.step_rows
