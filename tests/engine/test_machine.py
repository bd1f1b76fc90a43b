"""Random budgets, arrivals, cancellations, preemptions and faults: the same tokens, never over budget."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.engine.forests import random_prompts, requests_for
from treeshare.config import EngineConfig
from treeshare.engine.engine import Engine
from treeshare.models import load_model
from treeshare.sampling import SamplingParams

PROMPTS = random_prompts((70, [(20, [(3, []), (90, [])]), (130, [(65, []), (1, [])]), (400, [])]))
PARAMS = SamplingParams(n=5, temperature=1.0, max_tokens=24, stop_token_ids=[7, 9])
REQUESTS = requests_for(PROMPTS, PARAMS)
LONGEST_TOKENS = max(-(-len(prompt) // 64) * 64 for prompt in PROMPTS) + 32


PLACES = ["pool.new_page", "pool.copy", "segments.release", "segments.reserve", "segments.write"]


class EngineMachine(RuleBasedStateMachine):
    """What comes out is compared with each request run alone; bytes are looked at after every step."""

    loaded = None
    alone = None

    @initialize(
        more_pages=st.integers(0, 40),
        max_num_seqs=st.integers(1, 12),
        keep_nodes=st.booleans(),
        lazy_divergence=st.booleans(),
    )
    def start(self, more_pages, **config):
        budget = (LONGEST_TOKENS + 16 * more_pages) * self.loaded.geometry.bytes_per_token
        self.engine = Engine(
            self.loaded,
            EngineConfig(page_size=16, prefill_chunk=32, kv_budget_bytes=budget, **config),
            check_invariants=True,
        )
        self.expected = {}
        self.finished = set()

    @rule(which=st.integers(0, len(PROMPTS) - 1), indices=st.sets(st.integers(0, 4), max_size=5))
    def add(self, which, indices):
        index = self.engine.add_request(replace(REQUESTS[which], completion_indices=sorted(indices)))
        self.expected |= {(index, i): self.alone[which, i] for i in indices}

    @rule(num_steps=st.integers(1, 12))
    def step(self, num_steps):
        for _ in range(num_steps):
            for completion in self.engine.step().finished:
                key = completion.request_index, completion.completion_index
                assert key not in self.finished
                assert completion.token_ids == self.expected[key]
                self.finished.add(key)

    @precondition(lambda self: self.expected)
    @rule(pick=st.integers(0, 100), indices=st.sets(st.integers(0, 4)))
    def cancel(self, pick, indices):
        index = sorted({request for request, _ in self.expected})[pick % len({r for r, _ in self.expected})]
        open_ones = {i for r, i in self.expected if r == index} - {i for r, i in self.finished if r == index}
        chosen = sorted(indices & open_ones) or sorted(open_ones)
        assert self.engine.cancel(index, chosen) == len(chosen)
        for i in chosen:
            del self.expected[index, i]

    @precondition(lambda self: not self.engine.is_idle)
    @rule(pick=st.integers(0, 100))
    def preempt(self, pick):
        scheduler = self.engine._scheduler
        held = [*scheduler.admitted, *scheduler.running]
        if held:
            scheduler._preempt(held[pick % len(held)])

    @precondition(lambda self: not self.engine.is_idle)
    @rule(place=st.sampled_from(PLACES))
    def fault(self, place):
        def broken(*_, **__):
            raise RuntimeError("injected")

        with pytest.MonkeyPatch.context() as patch:
            part, name = place.split(".")
            store = self.engine.store
            patch.setattr(store.pools[0] if part == "pool" else store.segments, name, broken)
            try:
                self.step(2)
            except RuntimeError:
                assert self.engine.is_idle
                self.expected = {key: self.expected[key] for key in self.finished}

    @invariant()
    def within_budget(self):
        assert self.engine.store.peak_bytes <= self.engine.store.budget_bytes

    def teardown(self):
        if not hasattr(self, "engine"):
            return
        for _ in range(3000):
            if self.engine.is_idle:
                break
            self.step(1)
        assert self.engine.is_idle, "stalled"
        assert self.finished == set(self.expected)
        if not self.engine.config.keep_nodes:
            self.engine.store.check_empty()


def test_machine(model_dir):
    loaded = load_model(model_dir("llama"), "float32")
    EngineMachine.loaded = loaded
    EngineMachine.alone = {}
    for which, request in enumerate(REQUESTS):
        found = Engine(loaded, EngineConfig(page_size=16)).run([request])
        EngineMachine.alone |= {(which, c.completion_index): c.token_ids for c in found}
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(
        EngineMachine,
        settings=settings(
            max_examples=12,
            stateful_step_count=14,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
