"""The scheduler without a model: what is planned, who gives way, and that everything ends."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.engine.forests import requests_for
from tests.examples import examples
from treeshare.config import EngineConfig, FoldCost
from treeshare.engine.residency import Residency
from treeshare.engine.scheduler import Scheduler
from treeshare.engine.sequence import Completion, LiveRequest, Sequence
from treeshare.errors import BudgetError
from treeshare.kv import KVGeometry, KVStore
from treeshare.sampling import SamplingParams, StopChecker
from treeshare.tree import PromptTree

GEOMETRY = KVGeometry.uniform(num_layers=1, num_kv_heads=1, head_dim=16, dtype=torch.float32)
CONFIG = EngineConfig(max_num_seqs=8, page_size=16)
MAX_ROWS = 24
PROMPTS = [[1, 2, 3, *range(20, 60)], [1, 2, 3, *range(20, 50), 9], [7] * 40]
PARAMS = SamplingParams(n=3, max_tokens=20, ignore_eos=True)


class Driver:
    """In place of an engine: whoever has a row draws its completion's own token.

    Completions end after ``length`` tokens, if their parameters do not end them before.
    """

    length = 1000

    def __init__(self, config=CONFIG, budget_tokens=10_000):
        budget = budget_tokens * GEOMETRY.bytes_per_token
        self.store = KVStore(GEOMETRY, budget_bytes=budget, page_size=config.page_size, poison=True)
        self.residency = Residency(
            self.store, prefill_chunk=config.prefill_chunk, keep_nodes=config.keep_nodes
        )
        self.scheduler = Scheduler(self.residency, config, max_rows=MAX_ROWS, max_logits_rows=MAX_ROWS)
        self.lives, self.plans, self.finished = [], [], []

    def add(self, prompts, params=PARAMS):
        requests = requests_for(prompts, params)
        lengths = [params.max_tokens] * len(requests)
        self.residency.check_budget(list(zip(requests, lengths, strict=True)))
        tree = PromptTree.from_prompts(prompts)
        nodes = self.residency.place(tree, requests, lengths, FoldCost())
        sequences = []
        for request, node in zip(requests, nodes, strict=True):
            index, count = len(self.lives), len(request.completion_indices)
            live = LiveRequest(index, request, params.max_tokens, index, node, count)
            stop = StopChecker(
                params, max_tokens=params.max_tokens, eos_token_ids=frozenset(), continuation=None
            )
            self.lives.append(live)
            sequences.append(Sequence(live, list(request.completion_indices), stop))
        self.scheduler.add(sequences)

    def step(self):
        plan = self.scheduler.schedule()
        self.plans.append(plan)
        drawing = [s for s in plan.rows if s.draws_next]
        for node, chunk in plan.chunks:
            if chunk.end == node.num_tokens and node.num_unstarted:
                self.residency.keep_logits(node, torch.zeros(1))
        for sequence in plan.rows:
            sequence.num_computed += 1
        starting = self.scheduler.take_starting() if plan.starts else []
        for sequence in starting:
            self.residency.note_started(sequence.live.node, len(sequence.completions))
        singles = [single for sequence in starting for single in sequence.singles()]
        going_on, ended = [], []
        for sequence in [*drawing, *singles]:
            sequence.token_ids.append(sequence.completions[0])
            is_done = len(sequence.token_ids) == min(sequence.live.max_new_tokens, self.length)
            (ended if is_done else going_on).append(sequence)
        for sequence in ended:
            sequence.drop_kv(self.store)
        self.scheduler.go_on({*drawing, *singles}, going_on)
        for sequence in ended:
            self.finish(sequence)
        self.store.check_invariants()
        self.scheduler.check_invariants()

    def finish(self, sequence):
        (index,) = sequence.completions
        self.finished.append((sequence.live.index, index))
        completion = Completion(
            request_index=sequence.live.index, completion_index=index, token_ids=sequence.token_ids, text="",
            finish_reason="length", stop_reason=None, cumulative_logprob=0.0, logprobs=None,
            weight_versions=[],
        )  # fmt: skip
        self.scheduler.finish(sequence.live, completion)

    def run(self):
        for _ in range(2000):
            if self.scheduler.is_idle:
                return
            self.step()
        raise AssertionError("stalled")


def test_prompts_that_come_together_are_computed_before_anybody_decodes():
    driver = Driver(replace(CONFIG, max_num_seqs=9))
    driver.scheduler.pace.is_live = False
    driver.add(PROMPTS)
    driver.run()
    first_decode = next(i for i, plan in enumerate(driver.plans) if plan.rows)
    assert all(plan.chunks for plan in driver.plans[:first_decode])
    assert not any(plan.chunks for plan in driver.plans[first_decode:])
    assert sum(plan.num_prompt_tokens for plan in driver.plans) < sum(map(len, PROMPTS))
    assert max(plan.num_prompt_tokens for plan in driver.plans) <= MAX_ROWS
    assert sorted(driver.finished) == [(request, index) for request in range(3) for index in range(3)]
    driver.store.check_empty()


def test_prompts_that_come_later_ride_along():
    driver = Driver(replace(CONFIG, max_num_seqs=9))
    driver.add(PROMPTS[:1])
    while not driver.scheduler.running:
        driver.step()
    driver.add([[5] * 200])
    driver.run()
    mixed = [plan for plan in driver.plans if plan.rows and plan.chunks]
    assert len(mixed) > 1
    assert all(len(plan.rows) + plan.num_prompt_tokens <= MAX_ROWS for plan in mixed)
    assert sorted(driver.finished) == [(request, index) for request in range(2) for index in range(3)]
    driver.store.check_empty()


def test_too_few_bytes_preempt_the_youngest():
    """Short completions lower what the next ones are expected to need; then long ones come."""
    driver = Driver(budget_tokens=64 * 4 + 16 * 8)
    params = replace(PARAMS, n=9, max_tokens=48)
    driver.length = 2
    driver.add(PROMPTS, params)
    driver.run()
    assert sum(plan.num_preemptions for plan in driver.plans) == 0
    driver.length, num_before = 1000, len(driver.finished)
    driver.add(PROMPTS, params)
    driver.run()
    assert sum(plan.num_preemptions for plan in driver.plans) > 0
    assert any(plan.is_full for plan in driver.plans)
    later = driver.finished[num_before:]
    assert later.index((3, 0)) < later.index((5, 8))
    assert len(set(driver.finished)) == 54
    driver.store.check_empty()


def test_what_can_never_run_is_refused_before_anything_is_placed():
    driver = Driver(budget_tokens=64)
    with pytest.raises(BudgetError, match="the longest prompt with one completion"):
        driver.add(PROMPTS)
    assert driver.scheduler.is_idle


@examples(40)
@given(
    rows=st.integers(1, 9),
    tokens=st.integers(64 * 3 + 16 * 4, 64 * 12),
    keep_nodes=st.booleans(),
    arrivals=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 2)), max_size=4),
    cancelled=st.sets(st.integers(0, 2)),
)
def test_everything_ends_within_budget_and_rows(rows, tokens, keep_nodes, arrivals, cancelled):
    driver = Driver(replace(CONFIG, max_num_seqs=rows, keep_nodes=keep_nodes), tokens)
    driver.add(PROMPTS)
    num_cancelled = 0
    for steps, which in arrivals:
        for _ in range(steps):
            if not driver.scheduler.is_idle:
                driver.step()
        driver.add([PROMPTS[which]])
        num_cancelled += driver.scheduler.cancel(driver.lives[-1], cancelled)
    driver.run()
    assert len(driver.finished) + num_cancelled == 3 * len(driver.lives)
    assert len(set(driver.finished)) == len(driver.finished)
    assert all(len(plan.rows) <= rows for plan in driver.plans)
    if not keep_nodes:
        driver.store.check_empty()


def test_what_the_residency_counts_wrong_is_found():
    driver = Driver()
    driver.add(PROMPTS)
    driver.step()
    driver.lives[0].node.num_admitted += 1
    with pytest.raises(AssertionError, match="a node is miscounted"):
        driver.scheduler.check_invariants()
