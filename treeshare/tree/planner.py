"""Decides which shared segments become nodes.

A radix tree finds every shared prefix, even one as short as ``"def "``. A node of its own is worth it only if
sharing saves more than the node's launch and merge cost. ``fold_tree`` decides this by ``FoldCost``.
``truncate_sharing`` removes sharing on purpose, to measure what sharing brings.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, get_args

import numpy as np

from treeshare.config import DEFAULT_FOLD_COST, FoldCost, Sharing
from treeshare.errors import ConfigError
from treeshare.tree.prompt_tree import PromptTree
from treeshare.tree.radix import Skeleton

if TYPE_CHECKING:
    from collections.abc import Sequence

    from treeshare.tree.tokens import TokenArray


def step_cost(tree: PromptTree, num_rows: int | Sequence[int], cost: FoldCost = DEFAULT_FOLD_COST) -> int:
    """Cost of all nodes of ``tree`` per decoding step, which ``fold_tree`` lowers.

    Args:
        tree: Any prompt tree.
        num_rows: Completions per prompt, as for ``PromptTree.completions_below``.
        cost: The cost of a node.
    """
    below = tree.completions_below(num_rows)
    return sum(cost.node_cost(node.num_tokens, below[node.node_id]) for node in tree.nodes)


def fold_tree(
    tree: PromptTree, num_rows: int | Sequence[int], cost: FoldCost = DEFAULT_FOLD_COST
) -> PromptTree:
    """Fold nodes that cost more than they save into their children.

    Folding a node prepends its tokens to each child's segment. Prompts that end at the node get a leaf of
    their own, and a folded root leaves an empty root. Children are decided before their parents and each node
    is decided once: it is folded if that strictly lowers ``step_cost``, given what is folded below it. So the
    result never costs more than ``tree``, and folding it again changes nothing. Its cost is not always the
    minimum, because no decision is revised for a node further up.

    The result depends on the arguments alone, not on what is running.

    Args:
        tree: The tree to fold; not changed.
        num_rows: Completions per prompt, as for ``PromptTree.completions_below``.
        cost: The cost of a node.

    Returns:
        A tree with the same prompts. In general it is not in canonical radix form: siblings may start with
        the same tokens.

    Raises:
        ShapeError: If the number of ``num_rows`` is not the number of prompts.
        ConfigError: If a number of rows is below 1.
    """
    return _without(tree, _nodes_to_fold(tree, tree.completions_below(num_rows), cost))


def truncate_sharing(tree: PromptTree, mode: Sharing) -> PromptTree:
    """Remove sharing from a tree, for measurements.

    Args:
        tree: The tree to truncate; not changed.
        mode: ``"tree"``: return ``tree`` itself. ``"one-level"``: share only the root; each prompt gets its
            own leaf under it, unless it ends at the root. ``"none"``: share nothing; the root is empty and
            each prompt gets its own leaf, even where prompts are equal.

    Raises:
        ConfigError: If ``mode`` is none of these.
    """
    if mode not in get_args(Sharing):
        raise ConfigError.of("sharing", got=mode, expected=" | ".join(map(repr, get_args(Sharing))))
    if mode == "tree":
        return tree
    shared = tree.nodes[0].token_ids if mode == "one-level" else np.empty(0, np.int32)
    skeleton = Skeleton()
    root = skeleton.add(-1, shared)
    for tokens in tree.prompts():
        own = tokens[len(shared) :]
        skeleton.prompt_nodes.append(skeleton.add(root, own.copy()) if len(own) else root)
    return PromptTree.from_skeleton(skeleton)


def shared_first(lists: Sequence[Sequence[int]]) -> list[list[int]]:
    """Reorder each list so that items that many lists have come first: the lists then share longer prefixes.

    Greedy: among lists with the same beginning so far, each list continues with the item that occurs in the
    largest number of them (the lowest such item on a tie). Items that no other list of this group has stay in
    their order at the end. Takes time proportional to the number of all items times the longest list.

    Args:
        lists: Items of each list; no item twice in a list.
    """
    ordered: list[list[int]] = [[] for _ in lists]
    remaining = [list(items) for items in lists]
    groups = [list(range(len(lists)))]
    while groups:
        group = groups.pop()
        counts = Counter(item for index in group for item in remaining[index])
        by_next_item: dict[int, list[int]] = {}
        for index in group:
            next_item = min(remaining[index], key=lambda item: (-counts[item], item), default=None)
            if next_item is None or counts[next_item] < 2:
                ordered[index] += remaining[index]
            else:
                by_next_item.setdefault(next_item, []).append(index)
        for item, subgroup in by_next_item.items():
            for index in subgroup:
                remaining[index].remove(item)
                ordered[index].append(item)
            groups.append(subgroup)
    return ordered


def _nodes_to_fold(tree: PromptTree, below: Sequence[int], cost: FoldCost) -> set[int]:
    """Ids of the nodes whose folding lowers the step cost, given what is folded below them."""
    folded: set[int] = set()
    # By child: how many nodes receive the tokens of its parent, if that is folded.
    copies = [1] * len(tree.nodes)
    for node in reversed(tree.nodes):
        if not node.children or not node.num_tokens:
            continue
        num_copies = sum(copies[child] for child in node.children)
        kept = cost.node_cost(node.num_tokens, below[node.node_id])
        copied = cost.token_cost * num_copies * node.num_tokens
        if node.prompts:
            num_rows_here = below[node.node_id] - sum(below[child] for child in node.children)
            copied += cost.node_cost(node.num_tokens, num_rows_here)
        if copied < kept:
            folded.add(node.node_id)
            copies[node.node_id] = num_copies + bool(node.prompts)
    return folded


def _without(tree: PromptTree, folded: set[int]) -> PromptTree:
    """``tree`` with the nodes in ``folded`` folded into their children."""
    if not folded:
        return tree
    skeleton = Skeleton(prompt_nodes=[0] * tree.num_prompts)
    for_children: list[tuple[int, TokenArray]] = []  # by node: its children's new parent, tokens to prepend
    no_tokens = np.empty(0, np.int32)
    for node in tree.nodes:
        parent, prepended = for_children[node.parent] if node.parent >= 0 else (-1, no_tokens)
        segment = np.concatenate([prepended, node.token_ids]) if len(prepended) else node.token_ids
        if node.node_id not in folded:
            end_node = skeleton.add(parent, segment)
            for_children.append((end_node, no_tokens))
        else:
            if parent < 0:
                parent = skeleton.add(-1, no_tokens)
            for_children.append((parent, segment))
            end_node = skeleton.add(parent, segment.copy()) if node.prompts else parent
        for prompt in node.prompts:
            skeleton.prompt_nodes[prompt] = end_node
    return PromptTree.from_skeleton(skeleton)
