import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tree_cases import as_lists, full_prefix, some_prompts

from treeshare.errors import ConfigError, ShapeError
from treeshare.tree import FoldCost, PromptTree, fold_tree, step_cost, truncate_sharing
from treeshare.tree.planner import shared_first

costs = st.builds(
    FoldCost,
    launch_cost=st.integers(0, 12),
    merge_cost=st.integers(0, 2),
    token_cost=st.integers(1, 3),
    max_rows=st.integers(0, 20),
)


def _tree(root, leaves):
    """A root of ``root`` tokens above leaves of the given lengths."""
    return PromptTree.from_prompts([[0] * root + [i + 1] * length for i, length in enumerate(leaves)])


@given(some_prompts, costs, st.data())
def test_folding_keeps_the_prompts_and_never_costs_more(prompts, cost, data):
    rows = data.draw(st.lists(st.integers(1, 5), min_size=len(prompts), max_size=len(prompts)))
    tree = PromptTree.from_prompts(prompts)
    folded = fold_tree(tree, rows, cost)
    folded.check_invariants()
    assert as_lists(folded.prompts()) == prompts
    assert len(folded.nodes) <= len(tree.nodes) + 1  # the empty root of a folded root
    before, after = step_cost(tree, rows, cost), step_cost(folded, rows, cost)
    assert after < before if folded != tree else after == before


@given(some_prompts, st.integers(1, 5), costs)
def test_folding_again_changes_nothing(prompts, rows, cost):
    folded = fold_tree(PromptTree.from_prompts(prompts), rows, cost)
    assert fold_tree(folded, rows, cost) == folded


@given(some_prompts, st.integers(1, 5), costs)
def test_folding_is_a_pure_function(prompts, rows, cost):
    tree, same = (PromptTree.from_prompts(prompts) for _ in range(2))
    assert fold_tree(tree, rows, cost) == fold_tree(same, [rows] * len(prompts), cost)
    assert tree == same


@given(some_prompts, costs)
def test_every_folded_node_ends_where_a_node_ended(prompts, cost):
    tree = PromptTree.from_prompts(prompts)
    ends = {full_prefix(tree, node.node_id) for node in tree.nodes}
    folded = fold_tree(tree, 2, cost)
    assert {full_prefix(folded, n.node_id) for n in folded.nodes[1:]} <= ends
    assert [folded.prompt(i).tolist() for i in range(len(prompts))] == prompts


@pytest.mark.parametrize("rows", [1, 8, 64, 1000])
def test_a_long_preamble_is_never_folded(rows):
    tree = _tree(2048, [256] * 8)
    assert fold_tree(tree, rows) is tree


def test_sixteen_tokens_above_sixteen_children_are_folded_by_the_defaults():
    # 15 more copies of 16 tokens are 240 token-equivalents; a launch alone is 256, and merging comes on top.
    tree = _tree(16, [240] * 16)
    folded = fold_tree(tree, 1)
    assert [node.num_tokens for node in folded.nodes] == [0] + [256] * 16
    assert fold_tree(tree, 1, FoldCost(launch_cost=64)) is tree
    assert fold_tree(tree, 16, FoldCost(launch_cost=64)) != tree  # 256 rows to merge, 512 token-equivalents


@pytest.mark.parametrize("num_children", [2, 5, 16])
@pytest.mark.parametrize("rows", [1, 3, 40])
def test_one_node_folds_exactly_below_the_break_even_length(num_children, rows):
    cost = FoldCost(launch_cost=100, merge_cost=3, max_rows=64)
    kept = 100 + 3 * min(num_children * rows, 64)
    for length in range(1, kept + 2):
        tree = _tree(length, [4] * num_children)
        is_folded = fold_tree(tree, rows, cost).nodes[0].num_tokens == 0
        assert is_folded == ((num_children - 1) * length < kept)


def test_the_tiny_nodes_of_a_trie_fold_and_leave_a_forest():
    # The shape of HumanEval without shots: "from typing import List", ", Tuple", "\n\ndef", "\ndef".
    imports, rng = [5, 6, 7, 8], np.random.default_rng(0)
    fronts = [[*imports, 9, 10, 11]] * 16 + [[*imports, 12]] * 5 + [[1, 2, 3]] * 44 + [[1, 4]] * 96
    prompts = [[*front, 100 + i, *rng.integers(0, 50, 110).tolist()] for i, front in enumerate(fronts)]
    tree = PromptTree.from_prompts(prompts)
    assert tree.stats().depth == 3
    for rows in (1, 32):
        folded = fold_tree(tree, rows)
        assert len(folded.nodes) == 1 + len(prompts)
        assert folded.stats().unique_tokens < 1.05 * tree.stats().unique_tokens


def test_a_prompt_that_ends_at_a_folded_node_becomes_a_leaf():
    tree = PromptTree.from_prompts([[1], [1, 2], [1, 3]])
    folded = fold_tree(tree, [1, 8, 8])
    assert [node.token_ids.tolist() for node in folded.nodes] == [[], [1], [1, 2], [1, 3]]
    assert folded.prompt_nodes == (1, 2, 3)


def test_a_folded_node_passes_on_as_many_copies_as_it_leaves_nodes():
    cost = FoldCost(launch_cost=100, merge_cost=2, max_rows=256)
    for length in (52, 54):
        root = [0] * length
        # The middle node leaves a leaf for its own prompt and one for the longer: three nodes below the root.
        tree = PromptTree.from_prompts([[*root, 1], [*root, 1, 2], [*root, 3]])
        folded = fold_tree(tree, 1, cost)
        assert len(folded.nodes) == 4
        assert folded.nodes[0].num_tokens == (0 if 2 * length < 106 else length)


def test_only_the_middle_of_a_path_may_fold():
    deep = [[0] * 3000 + [1] + [i] * 500 for i in range(2, 6)]
    tree = PromptTree.from_prompts([*deep, [0] * 3000 + [9] * 600])
    folded = fold_tree(tree, 4)
    assert [node.num_tokens for node in folded.nodes] == [3000, 501, 501, 501, 501, 600]
    assert [node.depth for node in folded.nodes] == [0, 1, 1, 1, 1, 1]


def test_a_chain_folds_without_recursing():
    row = np.arange(3000)
    tree = PromptTree.from_prompts([row[:length] for length in range(1, 3001)])
    folded = fold_tree(tree, 2)
    assert all(np.array_equal(folded.prompt(i), row[: i + 1]) for i in range(0, 3000, 500))


def test_folding_nothing():
    for prompts in ([], [[]], [[1, 2]], [[1], [1]]):
        tree = PromptTree.from_prompts(prompts)
        assert fold_tree(tree, 4) is tree


def test_the_cost_of_a_node():
    cost = FoldCost(launch_cost=10, merge_cost=2, max_rows=5)
    assert [cost.node_cost(*case) for case in [(0, 9), (1, 1), (7, 5), (7, 6)]] == [0, 13, 27, 27]
    tree = _tree(3, [4, 4])
    assert step_cost(tree, 2, cost) == (10 + 8 + 3) + 2 * (10 + 4 + 4)
    dear = FoldCost(launch_cost=10, merge_cost=2, token_cost=7, max_rows=5)
    assert step_cost(tree, 2, dear) == (10 + 8 + 21) + 2 * (10 + 4 + 28)
    assert fold_tree(tree, 2, dear) is tree
    assert fold_tree(tree, 2, FoldCost(launch_cost=10, merge_cost=2, token_cost=6)) is tree
    assert fold_tree(tree, 2, FoldCost(launch_cost=10, merge_cost=2, token_cost=5)) != tree  # 18 to 15


@pytest.mark.parametrize("name", ["launch_cost", "merge_cost", "token_cost", "max_rows"])
@pytest.mark.parametrize("bad", [-1, 1.5])
def test_costs_out_of_range_are_refused(name, bad):
    with pytest.raises(ConfigError, match=f"{name}: got {bad}, expected an integer >= 0"):
        FoldCost(**{name: bad})


def test_as_many_row_counts_as_prompts():
    with pytest.raises(ShapeError, match="got 1 numbers for 2 prompts"):
        fold_tree(_tree(1, [1, 1]), [1])


@given(some_prompts)
def test_truncated_sharing_keeps_the_prompts(prompts):
    tree = PromptTree.from_prompts(prompts)
    assert truncate_sharing(tree, "tree") is tree
    for mode, root in (("one-level", tree.nodes[0].token_ids.tolist()), ("none", [])):
        truncated = truncate_sharing(tree, mode)
        assert as_lists(truncated.prompts()) == prompts
        assert truncated.nodes[0].token_ids.tolist() == root
        for prompt, node_id in zip(prompts, truncated.prompt_nodes, strict=True):
            if len(prompt) == len(root):
                assert node_id == 0
            else:
                assert truncated.nodes[node_id].depth == 1
                assert len(truncated.nodes[node_id].prompts) == 1


def test_duplicates_are_not_shared_when_sharing_is_off():
    tree = PromptTree.from_prompts([[1, 2], [1, 2], [1, 3]])
    assert tree.stats().unique_tokens == 3
    assert truncate_sharing(tree, "one-level").stats().unique_tokens == 4
    assert truncate_sharing(tree, "none").stats().unique_tokens == 6


def test_an_unknown_mode_is_refused():
    with pytest.raises(ConfigError, match=r"sharing: got 'two-level', expected 'tree' \| 'one-level' \|"):
        truncate_sharing(_tree(1, [1, 1]), "two-level")


some_lists = st.lists(st.lists(st.integers(0, 8), unique=True, max_size=5), max_size=8)


@given(some_lists)
def test_shared_first_only_reorders(lists):
    ordered = shared_first(lists)
    assert [sorted(items) for items in ordered] == [sorted(items) for items in lists]
    assert shared_first(ordered) == ordered


def test_what_many_have_comes_first():
    assert shared_first([[1, 2, 3], [4, 3, 2], [5, 3], [6], [6, 7], [9]]) == [
        [3, 2, 1],
        [3, 2, 4],
        [3, 5],
        [6],
        [6, 7],
        [9],
    ]
