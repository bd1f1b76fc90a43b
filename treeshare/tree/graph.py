"""Prompt trees to networkx graphs and back. networkx is imported on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from treeshare.errors import DataError
from treeshare.tree.radix import Skeleton
from treeshare.tree.tokens import as_token_array

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable

    from treeshare.tree.node import Node


def graph_of_nodes(nodes: Iterable[Node]) -> Any:  # noqa: ANN401  (networkx is untyped)
    """Return a tree's nodes as a ``networkx.DiGraph``; see ``PromptTree.to_networkx``."""
    import networkx as nx

    graph = nx.DiGraph()
    for node in nodes:
        graph.add_node(
            node.node_id, start=node.start, token_ids=node.token_ids.tolist(), prompts=list(node.prompts)
        )
        if node.parent >= 0:
            graph.add_edge(node.parent, node.node_id)
    return graph


def skeleton_of_graph(graph: Any) -> Skeleton:  # noqa: ANN401
    """Check a graph from outside and return its skeleton; see ``PromptTree.from_networkx``.

    Raises:
        DataError: If the graph is not a prompt tree.
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
            raise DataError(f"node {name!r}: token_ids is empty, which is allowed for the root only")
        index[name] = skeleton.add(parent, segment)
        ends.append(start + len(segment))
    skeleton.prompt_nodes = _prompt_nodes(graph, index)
    return skeleton


def _top_down(graph: Any) -> list[Hashable]:  # noqa: ANN401
    """Names of all nodes, parents first, after checking that the graph is a tree with one root."""
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
        num_unreached = len(graph) - len(names)
        raise DataError(f"graph: {num_unreached} nodes are on a cycle or below one, not below the root")
    return names


def _prompt_nodes(graph: Any, index: dict[Hashable, int]) -> list[int]:  # noqa: ANN401
    """The node at which each prompt ends, after checking that each ends once and some end at every leaf."""
    ends_at: dict[int, Hashable] = {}
    for name in index:
        prompts = as_token_array(graph.nodes[name].get("prompts", []), f"node {name!r}, prompts").tolist()
        for prompt in prompts:
            if prompt in ends_at:
                raise DataError(f"node {name!r}: prompt {prompt} already ends at node {ends_at[prompt]!r}")
            ends_at[prompt] = name
        if not prompts and not graph.out_degree(name) and not _is_empty_tree(graph):
            raise DataError(f"node {name!r}: a leaf at which no prompt ends; give it prompts, or remove it")
    missing = next((i for i in range(len(ends_at)) if i not in ends_at), None)
    if missing is not None:
        raise DataError(
            f"graph: prompt {missing} is missing; expected the {len(ends_at)} prompts to be 0, 1, 2, ..."
        )
    return [index[ends_at[prompt]] for prompt in range(len(ends_at))]


def _is_empty_tree(graph: Any) -> bool:  # noqa: ANN401
    return len(graph) == 1 and not any(len(ids) for _, ids in graph.nodes(data="token_ids"))
