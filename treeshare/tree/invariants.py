"""What every prompt tree must satisfy, checked by assertions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from treeshare.tree.node import Node


def check_nodes(nodes: Sequence[Node], prompt_nodes: Sequence[int]) -> None:
    """Assert that ``nodes`` are a tree in which every prompt ends once; costs one pass over both.

    Node ids are depth-first preorder. Segments are read-only int32, each starts where its parent's ends, and
    only the root's may be empty. Children are in the order of the first prompt below them. Each prompt ends
    at exactly one node, and at least one prompt ends at every leaf (except the lone root of a tree without
    prompts). Whether shared prefixes are maximal (the radix form) is not checked.

    Args:
        nodes: All nodes, by node id.
        prompt_nodes: The id of the node at which each prompt ends, by prompt index.

    Raises:
        AssertionError: If something of this does not hold.
    """
    assert nodes, "a tree has at least its root"
    sizes = [1] * len(nodes)
    first_prompts = [min(node.prompts, default=len(prompt_nodes)) for node in nodes]
    children: list[list[int]] = [[] for _ in nodes]
    for node in reversed(nodes):
        _check_node(node, nodes, len(prompt_nodes))
        children[node.node_id].reverse()
        ids, expected = children[node.node_id], node.node_id + 1
        for child in ids:
            assert child == expected, f"node {child}: not in depth-first preorder"
            expected += sizes[child]
        assert list(node.children) == ids, f"node {node.node_id}: children {node.children}, expected {ids}"
        assert ids == sorted(ids, key=first_prompts.__getitem__), (
            f"node {node.node_id}: children out of order"
        )
        if node.parent >= 0:
            children[node.parent].append(node.node_id)
            sizes[node.parent] += sizes[node.node_id]
            first_prompts[node.parent] = min(first_prompts[node.parent], first_prompts[node.node_id])
    ends = sorted((prompt, node.node_id) for node in nodes for prompt in node.prompts)
    assert ends == list(enumerate(prompt_nodes)), "prompts and nodes disagree"


def _check_node(node: Node, nodes: Sequence[Node], num_prompts: int) -> None:
    name, ids = f"node {node.node_id}", node.token_ids
    assert node is nodes[node.node_id], f"{name}: id is not its index"
    assert ids.dtype == np.int32, f"{name}: segment of {ids.dtype}"
    assert not ids.flags.writeable, f"{name}: segment can be written to"
    assert node.children or node.prompts or num_prompts == 0, f"{name}: a leaf at which no prompt ends"
    assert list(node.prompts) == sorted(node.prompts), f"{name}: prompts out of order"
    if node.node_id == 0:
        assert (node.parent, node.start, node.depth) == (-1, 0, 0), "root: not at position and depth 0"
        return
    assert 0 <= node.parent < node.node_id, f"{name}: parent {node.parent} does not come before it"
    parent = nodes[node.parent]
    assert (node.start, node.depth) == (parent.end, parent.depth + 1), f"{name}: not right below its parent"
    assert node.num_tokens > 0, f"{name}: empty, but not the root"
