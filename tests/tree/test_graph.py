import json

import networkx as nx
import pytest
from hypothesis import given
from tree_cases import as_lists, prompt_lists

from treeshare.errors import DataError
from treeshare.tree import PromptTree, truncate_sharing


@given(prompt_lists)
def test_a_tree_survives_json(prompts):
    tree = PromptTree.from_prompts(prompts)
    text = json.dumps(nx.node_link_data(tree.to_networkx(), edges="edges"))
    again = PromptTree.from_networkx(nx.node_link_graph(json.loads(text), edges="edges"))
    assert again == tree


def test_a_tree_that_is_not_canonical_is_kept_as_it_is():
    tree = truncate_sharing(PromptTree.from_prompts([[1, 2], [1, 2], [1, 3]]), "none")
    assert PromptTree.from_networkx(tree.to_networkx()) == tree


def test_a_foreign_graph_needs_only_tokens_prompts_and_edges():
    graph = nx.DiGraph()
    graph.add_node("leaf b", token_ids=(3,), prompts=[0])
    graph.add_node("preamble", token_ids=[1, 2])
    graph.add_node("leaf a", token_ids=[4, 5], prompts=[2, 1])
    graph.add_edges_from([("preamble", "leaf a"), ("preamble", "leaf b")])
    tree = PromptTree.from_networkx(graph)
    assert as_lists(tree.prompts()) == [[1, 2, 3], [1, 2, 4, 5], [1, 2, 4, 5]]
    assert tree == PromptTree.from_prompts(tree.prompts())


def test_networkx_draws_the_graph():
    tree = PromptTree.from_prompts([[1, 2], [1, 3]])
    assert len(list(nx.generate_network_text(tree.to_networkx()))) == 3
    assert nx.is_arborescence(tree.to_networkx())


def _graph(nodes, edges):
    graph = nx.DiGraph()
    for name, attributes in nodes.items():
        graph.add_node(name, **attributes)
    graph.add_edges_from(edges)
    return graph


ROOT = {"token_ids": [1]}
LEAF = {"token_ids": [2], "prompts": [0]}


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        ("no graph", "graph: got str, expected a networkx.DiGraph"),
        (nx.Graph(), "graph: got Graph"),
        (nx.MultiDiGraph(), "graph: got MultiDiGraph"),
        (nx.DiGraph(), "graph: got 0 nodes without a parent, expected one root"),
        (_graph({"a": ROOT, "b": LEAF}, []), "graph: got 2 nodes without a parent"),
        (
            _graph({"a": ROOT, "b": ROOT, "c": LEAF, "d": LEAF}, ["ab", "ac", "bd", "cd"]),
            "node 'd': got 2 parents, expected one",
        ),
        (_graph({"a": ROOT, "b": LEAF, "c": ROOT}, ["bc", "cb"]), "graph: 2 nodes are on a cycle"),
        (_graph({"a": ROOT, "b": {"prompts": [0]}}, ["ab"]), "node 'b': no token_ids"),
        (_graph({"a": ROOT, "b": {"token_ids": [], "prompts": [0]}}, ["ab"]), "node 'b': token_ids is empty"),
        (_graph({"a": ROOT, "b": {"token_ids": [-2], "prompts": [0]}}, ["ab"]), "node 'b': got id -2"),
        (_graph({"a": ROOT, "b": {"token_ids": "x", "prompts": [0]}}, ["ab"]), "node 'b': got a str"),
        (
            _graph({"a": ROOT, "b": {**LEAF, "start": 2}}, ["ab"]),
            "node 'b': start is 2, but its parent ends at 1",
        ),
        (_graph({"a": ROOT, "b": {"token_ids": [2]}}, ["ab"]), "node 'b': a leaf at which no prompt ends"),
        (_graph({"a": ROOT}, []), "node 'a': a leaf at which no prompt ends"),
        (_graph({"a": ROOT, "b": {"token_ids": [2], "prompts": [1]}}, ["ab"]), "graph: prompt 0 is missing"),
        (
            _graph({"a": {**ROOT, "prompts": [0]}, "b": LEAF}, ["ab"]),
            "node 'b': prompt 0 already ends at node 'a'",
        ),
        (
            _graph({"a": ROOT, "b": {**LEAF, "prompts": ["0"]}}, ["ab"]),
            "node 'b', prompts: got values of type",
        ),
    ],
)
def test_bad_graphs_are_refused_in_one_line(graph, message):
    with pytest.raises(DataError, match=message) as caught:
        PromptTree.from_networkx(graph)
    assert "\n" not in str(caught.value)
