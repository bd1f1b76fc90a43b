"""Prompt trees as networkx graphs, out and in. networkx is imported on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from treeshare.errors import DataError
from treeshare.tree.radix import Skeleton
from treeshare.tree.tokens import as_token_array

if TYPE_CHECKING:
    from collections.abc import Hashable

    from treeshare.tree.prompt_tree import PromptTree


def graph_of_tree(tree: PromptTree) -> Any:  # noqa: ANN401  (networkx is untyped)
    """Return ``tree`` as a ``networkx.DiGraph``; see ``PromptTree.to_networkx``."""
    import networkx as nx

    graph = nx.DiGraph()
    for node in tree.nodes:
        graph.add_node(
            node.node_id, start=node.start, token_ids=node.token_ids.tolist(), prompts=list(node.prompts)
        )
        if node.parent >= 0:
            graph.add_edge(node.parent, node.node_id)
    return graph


def skeleton_of_graph(graph: Any) -> Skeleton:  # noqa: ANN401
    """Check a foreign graph and return its skeleton; see ``PromptTree.from_networkx``.

    Raises:
        DataError: If the graph is not a tree of prompts.
    """
    import networkx as nx

    if not isinstance(graph, nx.DiGraph) or graph.is_multigraph():
        raise DataError(f"graph: got {type(graph).__name__}, expected a networkx.DiGraph")
    names = _top_down(graph)
    skeleton = Skeleton()
    index: dict[Hashable, int] = {}
    ends: list[int] = []
    for name in names:
        parent = next((index[p] for p in graph.predecessors(name)), -1)
        start = ends[parent] if parent >= 0 else 0
        attributes = graph.nodes[name]
        if attributes.get("start", start) != start:
            raise DataError(
                f"node {name!r}: start is {attributes['start']!r}, but its parent ends at {start}"
            )
        if "token_ids" not in attributes:
            raise DataError(f"node {name!r}: no token_ids; every node needs a list of token ids")
        segment = as_token_array(attributes["token_ids"], f"node {name!r}")
        if parent >= 0 and not len(segment):
            raise DataError(f"node {name!r}: token_ids is empty; only the root's may be")
        index[name] = skeleton.add(parent, segment)
        ends.append(start + len(segment))
    skeleton.prompt_nodes = _prompt_nodes(graph, index)
    return skeleton


def _top_down(graph: Any) -> list[Hashable]:  # noqa: ANN401
    """Names of all nodes, parents first, of a graph that is one rooted tree."""
    roots = [name for name, degree in graph.in_degree() if degree == 0]
    if len(roots) != 1:
        raise DataError(f"graph: got {len(roots)} nodes without a parent, expected one root")
    for name, degree in graph.in_degree():
        if degree > 1:
            raise DataError(f"node {name!r}: got {degree} parents, expected one")
    names: list[Hashable] = []
    stack = roots
    while stack:
        names.append(stack.pop())
        stack.extend(graph.successors(names[-1]))
    if len(names) != len(graph):
        raise DataError(f"graph: {len(graph) - len(names)} nodes are on a cycle, not below the root")
    return names


def _prompt_nodes(graph: Any, index: dict[Hashable, int]) -> list[int]:  # noqa: ANN401
    """The node at which each prompt ends, if every prompt ends once and no leaf is without one."""
    ends_at: dict[int, Hashable] = {}
    for name in index:
        prompts = as_token_array(graph.nodes[name].get("prompts", []), f"node {name!r}, prompts").tolist()
        for prompt in prompts:
            if prompt in ends_at:
                raise DataError(f"node {name!r}: prompt {prompt} already ends at node {ends_at[prompt]!r}")
            ends_at[prompt] = name
        if not prompts and not graph.out_degree(name) and not _is_empty_tree(graph):
            raise DataError(f"node {name!r}: a leaf at which no prompt ends; give it prompts")
    missing = next((i for i in range(len(ends_at)) if i not in ends_at), None)
    if missing is not None:
        raise DataError(
            f"graph: prompt {missing} is missing of {len(ends_at)}; expected indices from 0 without gaps"
        )
    return [index[ends_at[prompt]] for prompt in range(len(ends_at))]


def _is_empty_tree(graph: Any) -> bool:  # noqa: ANN401
    return len(graph) == 1 and not any(len(ids) for _, ids in graph.nodes(data="token_ids"))
