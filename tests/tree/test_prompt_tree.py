import dataclasses
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from tree_cases import as_lists, full_prefix, prefixes, prompt_lists, radix_nodes, some_prompts

import treeshare.tree
from treeshare.errors import ConfigError, DataError, ShapeError
from treeshare.tree import PromptTree, kv_bytes_per_token


@given(prompt_lists)
def test_prompts_come_back(prompts):
    tree = PromptTree.from_prompts(prompts)
    tree.check_invariants()
    assert as_lists(tree.prompts()) == prompts
    assert [tree.prompt(i).tolist() for i in range(len(prompts))] == prompts
    assert tree.num_prompts == len(prompts)


@given(prompt_lists)
def test_nodes_are_those_of_the_radix_definition(prompts):
    tree = PromptTree.from_prompts(prompts)
    ends = [full_prefix(tree, node.node_id) for node in tree.nodes]
    assert len(set(ends)) == len(ends)
    assert set(ends) == radix_nodes(prompts)
    for node in tree.nodes:
        first_tokens = [int(tree.nodes[child].token_ids[0]) for child in node.children]
        assert len(set(first_tokens)) == len(first_tokens)
        if node.node_id and not node.prompts:
            assert len(node.children) >= 2


@given(prompt_lists)
def test_unique_tokens_are_the_distinct_prefixes(prompts):
    stats = PromptTree.from_prompts(prompts).stats(3)
    assert stats.unique_tokens == len(prefixes(prompts))
    assert stats.logical_tokens == 3 * sum(map(len, prompts))
    assert stats.num_completions == 3 * len(prompts)


@given(some_prompts)
def test_depth_first_order_follows_the_given_order(prompts):
    tree = PromptTree.from_prompts(prompts)

    def first(node_id):
        row = full_prefix(tree, node_id)
        return next(i for i, prompt in enumerate(prompts) if tuple(prompt[: len(row)]) == row)

    for node in tree.nodes:
        assert [first(child) for child in node.children] == sorted(first(child) for child in node.children)


@given(prompt_lists)
def test_rows_of_every_node_are_one_slice_in_depth_first_order(prompts):
    tree = PromptTree.from_prompts(prompts)
    order = [prompt for node in tree.nodes for prompt in node.prompts]
    for node in tree.nodes:
        row = full_prefix(tree, node.node_id)
        below = [i for i, prompt in enumerate(prompts) if tuple(prompt[: len(row)]) == row]
        places = sorted(order.index(i) for i in below)
        assert places == list(range(places[0], places[0] + len(places))) if places else True
        assert len(below) == tree.completions_below()[node.node_id]


def test_a_hand_made_tree():
    tree = PromptTree.from_prompts([[9, 1, 2, 3], [9, 1, 2, 4, 4], [9, 5], [9, 1, 2]])
    seen = [
        (n.node_id, n.parent, n.start, n.end, n.token_ids.tolist(), n.children, n.prompts, n.depth)
        for n in tree.nodes
    ]
    assert seen == [
        (0, -1, 0, 1, [9], (1, 4), (), 0),
        (1, 0, 1, 3, [1, 2], (2, 3), (3,), 1),
        (2, 1, 3, 4, [3], (), (0,), 2),
        (3, 1, 3, 5, [4, 4], (), (1,), 2),
        (4, 0, 1, 2, [5], (), (2,), 1),
    ]
    assert tree.prompt_nodes == (2, 3, 4, 1)
    assert tree.path(3) == (0, 1, 3)
    assert repr(tree) == "PromptTree(4 prompts, 5 nodes, 7 unique tokens)"


@pytest.mark.parametrize(
    ("prompts", "num_nodes", "root"),
    [
        ([], 1, []),
        ([[]], 1, []),
        ([[], []], 1, []),
        ([[7]], 1, [7]),
        ([[7, 8], [7, 8]], 1, [7, 8]),
        ([[], [7]], 2, []),
        ([[7], [7, 8], [7, 8, 9]], 3, [7]),
        ([[1, 2], [2, 1]], 3, []),
        ([[2**31 - 1, 0], [2**31 - 1, 256], [2**31 - 1, 1]], 4, [2**31 - 1]),
    ],
)
def test_edges(prompts, num_nodes, root):
    tree = PromptTree.from_prompts(prompts)
    tree.check_invariants()
    assert len(tree.nodes) == num_nodes
    assert tree.nodes[0].token_ids.tolist() == root
    assert as_lists(tree.prompts()) == prompts


def test_an_empty_tree_has_neutral_statistics():
    stats = PromptTree.from_prompts([]).stats()
    assert (stats.depth, stats.unique_tokens, stats.sharing_ratio, stats.num_nodes) == (0, 0, 1.0, 1)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.int64, np.uint64, ">i4"])
def test_integer_arrays_of_any_width_are_prompts(dtype):
    prompts = [np.array([1, 2, 3], dtype), (1, 2, 4)]
    tree = PromptTree.from_prompts(prompts)
    assert tree.nodes[0].token_ids.dtype == np.int32
    assert as_lists(tree.prompts()) == [[1, 2, 3], [1, 2, 4]]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([1, -1], r"prompt 1: got id -1 at position 1, expected \[0, 2\*\*31\)"),
        ([2**31], r"prompt 1: got id 2147483648 at position 0"),
        ([2**64, 1], "prompt 1: got values of type object"),
        (np.array([0, 2**63], np.uint64), "prompt 1: got id 9223372036854775808 at position 1"),
        ([1.0, 2.0], "prompt 1: got values of type float64, expected integers"),
        ([True], "prompt 1: got values of type bool"),
        (["a"], "prompt 1: got values of type <U1"),
        ("text", "prompt 1: got a str, expected a flat list of integers"),
        (None, "prompt 1: got a NoneType"),
        ([[1], [2]], "prompt 1: got a list"),
        (np.zeros((2, 2), int), r"prompt 1: got an array of shape \(2, 2\)"),
        ([[1], [2, 3]], "prompt 1: expected a flat list"),
    ],
)
def test_bad_prompts_are_named(prompt, message):
    with pytest.raises(DataError, match=message) as caught:
        PromptTree.from_prompts([[1], prompt])
    assert "\n" not in str(caught.value)


def test_a_chain_of_prefixes_does_not_recurse():
    row = np.arange(5000)
    tree = PromptTree.from_prompts([row[:length] for length in range(5000, 0, -1)])
    assert len(tree.nodes) == 5000
    assert tree.stats().depth == 5000
    assert tree.stats().unique_tokens == 5000
    assert np.array_equal(tree.prompt(0), row)
    assert len(tree.prompts()[4999]) == 1
    assert PromptTree.from_networkx(tree.to_networkx()) == tree


def test_ten_thousand_prompts_with_shared_preambles():
    rng = np.random.default_rng(0)
    preambles = rng.integers(0, 50_000, (10, 800))
    preambles[:, :300] = preambles[0, :300]
    preambles[:, 300] = np.arange(10)
    problems = rng.integers(0, 50_000, (10_000, 200))
    problems[:, 0] = np.arange(10_000)
    prompts = [np.concatenate([preambles[i % 10], problems[i]]) for i in range(10_000)]
    tree = PromptTree.from_prompts(prompts)
    assert len(tree.nodes) == 1 + 10 + 10_000
    assert tree.nodes[0].num_tokens == 300
    stats = tree.stats(100)
    assert stats.unique_tokens == 300 + 10 * 500 + 10_000 * 200
    assert stats.logical_tokens == 100 * 10_000 * 1000
    assert stats.depth == 3
    assert all(np.array_equal(a, b) for a, b in zip(tree.prompts(), prompts, strict=True))


def test_nothing_in_a_tree_can_be_changed():
    given_ids = np.array([1, 2, 3], np.int32)
    tree = PromptTree.from_prompts([given_ids, [1, 2]])
    given_ids[:] = 0
    assert tree.prompt(0).tolist() == [1, 2, 3]
    with pytest.raises(ValueError, match="read-only"):
        tree.nodes[0].token_ids[0] = 5
    with pytest.raises(dataclasses.FrozenInstanceError):
        tree.nodes[0].start = 5
    tree.prompts()[0][:] = 0
    assert tree.prompt(0).tolist() == [1, 2, 3]


def test_trees_compare_by_content():
    tree, same = (PromptTree.from_prompts([[1, 2], [1, 3]]) for _ in range(2))
    assert tree == same
    assert hash(tree) == hash(same)
    assert tree == pickle.loads(pickle.dumps(tree))
    assert tree != PromptTree.from_prompts([[1, 2], [1, 4]])
    assert tree != PromptTree.from_prompts([[1, 3], [1, 2]])
    assert tree.nodes[0] != "a node"


def test_statistics_by_hand():
    tree = PromptTree.from_prompts([[9, 1, 2, 3], [9, 1, 2, 4, 4], [9, 5], [9, 1, 2]])
    stats = tree.stats([1, 2, 3, 10])
    assert (stats.num_prompts, stats.num_completions, stats.num_nodes, stats.depth) == (4, 16, 5, 3)
    assert stats.logical_tokens == 4 + 2 * 5 + 3 * 2 + 10 * 3
    assert stats.unique_tokens == 7
    assert stats.sharing_ratio == 50 / 7
    assert tree.completions_below(np.array([1, 2, 3, 10])) == (16, 13, 1, 2, 3)
    bytes_per_token = kv_bytes_per_token(30, 3, 64, 2)
    assert bytes_per_token == 23_040
    assert stats.kv_bytes(bytes_per_token) == (7 * 23_040, 50 * 23_040)
    assert stats.kv_bytes(2).logical == 100


@pytest.mark.parametrize("bad", [0, -1, [1, 0], [1, 1.5], [True, "x"]])
def test_bad_completion_counts_are_refused(bad):
    with pytest.raises(ConfigError, match=r"num_completions of prompt \d: got .* an integer of at least 1"):
        PromptTree.from_prompts([[1], [2]]).stats(bad)


def test_as_many_counts_as_prompts():
    with pytest.raises(ShapeError, match="got 3 numbers for 2 prompts"):
        PromptTree.from_prompts([[1], [2]]).completions_below([1, 1, 1])


def _with_node(tree, node_id, /, **changes):
    nodes = list(tree.nodes)
    nodes[node_id] = dataclasses.replace(nodes[node_id], **changes)
    return PromptTree(tuple(nodes), tree.prompt_nodes)


@pytest.mark.parametrize(
    ("node_id", "changes", "message"),
    [
        (2, {"start": 4}, "not right below its parent"),
        (2, {"depth": 1}, "not right below its parent"),
        (2, {"parent": 3}, "does not come before it"),
        (4, {"parent": 1}, "not right below"),
        (2, {"node_id": 3}, "id is not its index"),
        (3, {"token_ids": np.broadcast_to(np.int32(1), 0)}, "empty, but not the root"),
        (3, {"token_ids": np.zeros(2, np.int64)}, "segment of int64"),
        (3, {"token_ids": np.zeros(2, np.int32)}, "can be written to"),
        (1, {"children": (3, 2)}, "children"),
        (2, {"prompts": ()}, "a leaf at which no prompt ends"),
        (2, {"prompts": (0, 1)}, "prompts and nodes disagree"),
        (2, {"prompts": (1, 0)}, "prompts out of order"),
        (0, {"parent": -2}, "root: not at position and depth 0"),
    ],
)
def test_check_invariants_sees_a_seeded_fault(node_id, changes, message):
    tree = PromptTree.from_prompts([[9, 1, 2, 3], [9, 1, 2, 4, 4], [9, 5], [9, 1, 2]])
    with pytest.raises(AssertionError, match=message):
        _with_node(tree, node_id, **changes).check_invariants()


def test_importing_needs_neither_torch_nor_networkx():
    # The parent package is left out: what it imports is its own affair.
    folder = str(Path(treeshare.tree.__file__).parents[1])
    code = f"""
import sys, types
sys.modules["treeshare"] = package = types.ModuleType("treeshare")
package.__path__ = [{folder!r}]
import treeshare.tree
print([name for name in ("torch", "networkx", "transformers") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
