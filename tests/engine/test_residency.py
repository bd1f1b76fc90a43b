"""Which nodes hold KV: the books by brute force, and every stored token is that of its prompt."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.engine.forests import requests_for
from tests.engine.house import BASE, CHUNK, GEOMETRY, MAX_TOKENS, PROMPTS, SHARES_ALL, House
from tests.examples import examples
from treeshare.config import FoldCost
from treeshare.engine.forest import LiveNode
from treeshare.engine.prefill_queue import PrefillQueue
from treeshare.engine.residency import Residency
from treeshare.errors import BudgetError
from treeshare.kv import padded_length
from treeshare.sampling import SamplingParams
from treeshare.tree import PromptTree

MIN_TOKENS = 64 * 2 + MAX_TOKENS
"""Budget of the longest of ``PROMPTS`` with one completion."""

FREQUENT = ("admit", "arrive", "compute", "leave", "reclaim", "start", "withdraw")
RARE = ("change_weights", "drop_logits")
ACTIONS = (*FREQUENT * 3, *["admit", "compute"] * 3, *RARE)


def play(house, actions):
    """Actions in turn, each with a number that chooses who or how much; then everybody goes."""
    for action, number in actions:
        if action == "arrive":
            house.arrive(PROMPTS[number % 8 : number % 8 + 1 + number % 3])
        elif action == "compute":
            house.compute(CHUNK * (1 + number % 5))
        elif action == "reclaim":
            house.reclaim(64 * (number % 4) * GEOMETRY.bytes_per_token)
        elif action in RARE:
            getattr(house, action)()
        elif house.tenants:
            tenant = house.tenants[number % len(house.tenants)]
            if action != "admit" or not tenant.has_row:
                getattr(house, action)(tenant)
    while house.tenants:
        house.leave(house.tenants[0])
    house.reclaim(house.store.budget_bytes)
    house.store.check_empty()
    assert house.nodes == []


def random_actions(seed, count):
    rng = np.random.default_rng(seed)
    return [(str(rng.choice(ACTIONS)), int(rng.integers(24))) for _ in range(count)]


@examples(150)
@given(
    actions=st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 23)), max_size=60),
    budget_tokens=st.integers(MIN_TOKENS, 64 * 12),
    keep_nodes=st.booleans(),
    fold_cost=st.sampled_from([SHARES_ALL, FoldCost(), FoldCost(launch_cost=20)]),
)
def test_any_order_of_events(actions, budget_tokens, keep_nodes, fold_cost):
    play(House(budget_tokens=budget_tokens, keep_nodes=keep_nodes, fold_cost=fold_cost), actions)


SCENARIOS = [
    {"budget_tokens": MIN_TOKENS + 64 * extra, "keep_nodes": keep, "fold_cost": fold_cost}
    for extra, keep in ((0, True), (3, True), (5, False))
    for fold_cost in (SHARES_ALL, FoldCost())
]


def give_up_and_come_again(house):
    """A prompt half computed is given up, and asked for again; then one of which only logits are missing."""
    for prompt in PROMPTS[4:6]:
        (first,) = house.arrive([prompt])
        house.admit(first)
        house.compute(2 * CHUNK)
        house.leave(first)
        assert not house.residency.is_prefilling
        (second,) = house.arrive([prompt])
        house.admit(second)
        house.compute_all()
        house.start(second)
        assert second.has_started
        (third,) = house.arrive([prompt])
        house.admit(third)
        assert house.residency.is_prefilling
        house.leave(third)
        assert not house.residency.is_prefilling
    return house.num_computed


def test_a_prompt_given_up_is_gone_on_with():
    assert give_up_and_come_again(House(keep_nodes=True)) == len(PROMPTS[4]) + len(PROMPTS[5])
    assert give_up_and_come_again(House()) == 2 * 2 * CHUNK + len(PROMPTS[4]) + len(PROMPTS[5])


def play_scenarios():
    give_up_and_come_again(House(keep_nodes=True))
    for seed, scenario in enumerate(SCENARIOS):
        play(House(**scenario), random_actions(seed, 300))


def wrap(monkeypatch, owner, name, change):
    monkeypatch.setattr(owner, name, change(getattr(owner, name)))


def more_is_copied_than_is_alike(monkeypatch):
    def change(copy_source):
        def source(node):
            sibling, count = copy_source(node)
            return sibling, min(count + CHUNK, sibling.segment.num_written) if sibling else count

        return source

    wrap(monkeypatch, LiveNode, "copy_source", change)


def a_row_is_no_reason_to_keep(monkeypatch):
    held = property(lambda node: node.segment is not None and not node.num_held)
    monkeypatch.setattr(LiveNode, "is_idle", held)


def a_child_is_no_reason_to_keep(monkeypatch):
    needed = property(lambda node: node.segment is not None and not node.num_admitted)
    monkeypatch.setattr(LiveNode, "is_idle", needed)


def chunks_anywhere(monkeypatch):
    def change(want_logits):
        def want(self, node):
            want_logits(self, node)
            if node in self._computing and node.segment.num_written:
                node.segment.num_written = node.num_tokens - 1

        return want

    wrap(monkeypatch, Residency, "want_logits", change)


def children_before_parents(monkeypatch):
    wrap(monkeypatch, Residency, "make_segments", lambda make: lambda self, nodes: make(self, nodes[:1]))


def a_dropped_node_is_computed_on(monkeypatch):
    def change(drop):
        def dropped(self, node):
            queued = self._computing._nodes.copy()
            drop(self, node)
            self._computing._nodes = queued

        return dropped

    wrap(monkeypatch, Residency, "_drop_segment", change)


def nobody_is_pruned(monkeypatch):
    monkeypatch.setattr(Residency, "_prune", lambda self, node: None)


def a_row_that_nobody_had_is_given_back(monkeypatch):
    wrap(
        monkeypatch,
        Residency,
        "forget",
        lambda f: lambda self, node, n, had_row: f(self, node, n, had_row=True),
    )


def logits_stay(monkeypatch):
    monkeypatch.setattr(Residency, "drop_logits", lambda self: None)


def a_prompt_that_is_given_up_is_computed_on(monkeypatch):
    monkeypatch.setattr(PrefillQueue, "give_up", lambda self, node: False)


def what_is_half_computed_counts_as_whole(monkeypatch):
    def admit(self, node, count):
        for above in node.path():
            above.num_admitted += count

    monkeypatch.setattr(Residency, "admit", admit)


def a_copy_that_is_given_up_counts_as_half(monkeypatch):
    def change(remove):
        def removed(self, node):
            if node in self._nodes:
                self._nodes[node] = False
            remove(self, node)

        return removed

    wrap(monkeypatch, PrefillQueue, "remove", change)


def logits_that_nobody_waits_for_are_computed(monkeypatch):
    monkeypatch.setattr(PrefillQueue, "forget_logits", lambda self, node: None)


FAULTS = [
    more_is_copied_than_is_alike,
    a_row_is_no_reason_to_keep,
    a_child_is_no_reason_to_keep,
    chunks_anywhere,
    children_before_parents,
    a_dropped_node_is_computed_on,
    nobody_is_pruned,
    a_row_that_nobody_had_is_given_back,
    logits_stay,
    a_prompt_that_is_given_up_is_computed_on,
    what_is_half_computed_counts_as_whole,
    a_copy_that_is_given_up_counts_as_half,
    logits_that_nobody_waits_for_are_computed,
]


def test_without_a_fault_the_scenarios_pass():
    play_scenarios()


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_fault_is_found(fault, monkeypatch):
    fault(monkeypatch)
    with pytest.raises(AssertionError):
        play_scenarios()


@pytest.mark.parametrize("counter", ["num_unfinished", "num_admitted", "num_unstarted", "num_held"])
@pytest.mark.parametrize("change", [-1, 1])
def test_a_counter_that_is_wrong_is_found(counter, change):
    """By the residency's own check, on a node that is needed, and on one that is not."""
    house = House(keep_nodes=True)
    (kept,) = house.arrive(PROMPTS[4:5])
    (tenant,) = house.arrive(PROMPTS[5:6])
    for resident in (kept, tenant):
        house.admit(resident)
    house.compute_all()
    house.leave(kept)
    for node in (kept.node, tenant.node):
        sequences = [tenant.as_sequence()]
        house.residency.check_invariants([], sequences)
        value = getattr(node, counter)
        setattr(node, counter, value + change)
        with pytest.raises(AssertionError):
            house.residency.check_invariants([], sequences)
        setattr(node, counter, value)


# -- the budget --


@given(
    st.lists(st.tuples(st.integers(1, 400), st.integers(1, 90), st.integers(0, 2)), min_size=1, max_size=4),
    st.integers(0, 700),
)
def test_what_can_never_run_is_refused(sizes, budget_tokens):
    """Prompts are padded to 64 tokens, completions to pages of 16; the last token needs no KV."""
    house = House(budget_tokens=budget_tokens)
    requests = [
        (replace(request, completion_indices=range(count)), max_tokens)
        for length, max_tokens, count in sizes
        for request in requests_for([[5] * length], SamplingParams())
    ]
    needed = max(
        -(-length // 64) * 64 + -(-(tokens - 1) // 16) * 16 if n else 0 for length, tokens, n in sizes
    )
    if needed <= budget_tokens:
        house.residency.check_budget(requests)
        return
    with pytest.raises(BudgetError) as caught:
        house.residency.check_budget(requests)
    got, expected = (tokens * GEOMETRY.bytes_per_token for tokens in (budget_tokens, needed))
    assert str(caught.value) == (
        f"kv_budget_bytes: got {got}, expected at least {expected} (the longest prompt with one completion); "
        "raise it or lower max_tokens"
    )


def test_a_path_that_the_budget_does_not_hold_becomes_a_node():
    """Two nodes are padded to 192 tokens where the prompt alone takes 128."""
    prompts = [PROMPTS[5], [*BASE, *[8] * 70]]
    for budget_tokens, path_lengths in ((64 * 3 + 16, [48, 70]), (64 * 3 + 15, [118])):
        house = House(budget_tokens=budget_tokens)
        for tenant in house.arrive(prompts):
            assert [node.num_tokens for node in tenant.node.path()] == path_lengths
        assert len(house.nodes) == (3 if len(path_lengths) == 2 else 2), "a displaced node stays"


def test_a_request_without_completions_leaves_no_node():
    house, prompts = House(), PROMPTS[:2]
    requests = [
        replace(request, completion_indices=()) for request in requests_for(prompts, SamplingParams())
    ]
    nodes = house.residency.place(PromptTree.from_prompts(prompts), requests, [9, 9], SHARES_ALL)
    assert len(house.nodes) == 3
    house.residency.expect([(node, 0) for node in nodes])
    assert house.nodes == []


# -- copying --


def test_a_later_prompt_is_computed_from_the_border_of_a_chunk():
    """40 tokens are known, in chunks of 16: 32 of 41 are copied."""
    house = House(fold_cost=FoldCost())
    for prompt, num_computed in (
        (BASE, 48),
        ([*BASE[:40], 7], 41 - 32),
        (BASE[:33], 33 - 32),
        ([*BASE[:9]], 9),
    ):
        before = house.num_computed
        (tenant,) = house.arrive([prompt])
        house.admit(tenant)
        house.compute_all()
        assert house.num_computed - before == num_computed
        assert tenant.node.path() == [tenant.node], "copied, not shared"


def test_the_last_token_is_never_copied():
    """Its logits are wanted. The second prompt is a node of the first batch's kind, and comes later."""
    house = House(fold_cost=FoldCost())
    for tenant in (*house.arrive([BASE]), *house.arrive([BASE[:32]])):
        house.admit(tenant)
        house.compute_all()
        house.start(tenant)
        assert tenant.has_started


def test_what_a_sibling_computes_meanwhile_is_copied():
    """Both are queued before anything is computed; when it is the second's turn, 32 tokens are known."""
    house = House(fold_cost=FoldCost())
    tenants = [*house.arrive([BASE]), *house.arrive([[*BASE[:40], 7]])]
    for tenant in tenants:
        house.admit(tenant)
    chunks = []
    while house.residency.is_prefilling:
        chunks += [(chunk.start, chunk.end) for _, chunk in house.compute(CHUNK)]
    assert chunks == [(0, 16), (16, 32), (32, 48), (32, 41)]


def test_logits_wanted_again_cost_the_last_chunk():
    house = House(keep_nodes=True)
    (first,) = house.arrive([BASE[:40]])
    house.admit(first)
    house.compute_all()
    house.start(first)
    (second,) = house.arrive([BASE[:40]])
    assert second.node is first.node
    house.admit(second)
    assert [(chunk.start, chunk.end) for _, chunk in house.compute()] == [(32, 40)]
    house.start(second)
    assert second.has_started
    assert second.node.logits is None


# -- memory --


def test_the_one_used_longest_ago_is_given_up_first():
    """What waiting completions need goes last, whenever it was used."""
    house = House(keep_nodes=True)
    prompts = [[number] * 50 for number in (1, 2, 3, 4)]
    tenants = house.arrive(prompts)
    for tenant in tenants:
        house.admit(tenant)
    house.compute_all()
    house.withdraw(tenants[0])
    for tenant in (tenants[2], tenants[1], tenants[3]):
        house.leave(tenant)
    order = []
    while house.store.segments.num_live:
        held = {node for node in (tenant.node for tenant in tenants) if node.segment is not None}
        assert house.reclaim(1) == padded_length(50) * GEOMETRY.bytes_per_token
        order += [tenants.index(t) for t in tenants if t.node in held and t.node.segment is None]
    assert order == [2, 1, 3, 0]


@pytest.mark.parametrize("keep_nodes", [False, True])
def test_nodes_stay_where_they_are_kept(keep_nodes):
    house = House(keep_nodes=keep_nodes)
    tenants = house.arrive(PROMPTS[:3])
    for tenant in tenants:
        house.admit(tenant)
    house.compute_all()
    num_live = house.store.segments.num_live
    assert num_live > 1
    for tenant in tenants:
        house.leave(tenant)
    assert house.store.segments.num_live == (num_live if keep_nodes else 0)
    assert bool(house.nodes) == keep_nodes
    house.arrive(PROMPTS[:1])
    assert house.residency.is_computed(house.tenants[0].node) == keep_nodes
