"""Which shared segments are worth a node of their own.

A radix tree finds every shared prefix, also ``"def "``. Attending to a node separately is worth it only if it
saves more than the additional launch and merge cost; ``fold_tree`` decides that, with the one cost model in
``FoldCost``. ``truncate_sharing`` gives up sharing on purpose, to measure what it brings.
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
    """Cost per decoding step of all nodes of ``tree``: what ``fold_tree`` lowers.

    Args:
        tree: Any prompt tree.
        num_rows: Completions of every prompt, or of each.
        cost: The cost of a node.
    """
    below = tree.completions_below(num_rows)
    return sum(cost.node_cost(node.num_tokens, below[node.node_id]) for node in tree.nodes)


def fold_tree(
    tree: PromptTree, num_rows: int | Sequence[int], cost: FoldCost = DEFAULT_FOLD_COST
) -> PromptTree:
    """Fold the nodes that cost more than they save into their children.

    Folding a node prepends its tokens to each child's segment; prompts that end at it get a leaf of their
    own, and folding the root leaves an empty root. Decided bottom-up (children before parents, each node
    once), when the number of copies that folding would make is known: a node is folded if that strictly
    lowers ``step_cost``. So the result never costs more than ``tree``, and folding it again changes nothing.
    It is not always the least possible: no decision is taken back for the sake of a node further up.

    A pure function of its arguments; what is running when plays no part. Note that ``num_rows`` is among
    them: with other numbers of completions, other nodes may fold, and bfloat16 attention then rounds
    differently.

    Args:
        tree: The tree to fold; not changed.
        num_rows: Completions of every prompt, or of each.
        cost: The cost of a node.

    Returns:
        A tree with exactly the same prompts, in general no longer canonical (siblings may start with the same
        tokens).

    Raises:
        ShapeError: If there are not as many ``num_rows`` as prompts.
        ConfigError: If one of them is below 1.
    """
    return _without(tree, _nodes_to_fold(tree, tree.completions_below(num_rows), cost))


def truncate_sharing(tree: PromptTree, mode: Sharing) -> PromptTree:
    """Give up a part of the sharing, for measurements.

    Args:
        tree: The tree to truncate; not changed.
        mode: ``"tree"``: ``tree`` itself. ``"one-level"``: only the root is shared, each prompt is a leaf of
            its own under it (a prompt that ends at the root stays there). ``"none"``: the root is empty and
            each prompt is a leaf of its own, duplicates too.

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
    """Reorder each list so that what many lists have comes first: as prefixes, they then share more.

    Among lists with the same beginning so far, each continues with that of its items that most of them still
    have (the lowest on a tie); what a list alone has keeps its order at the end. A pure function of the
    lists, in time that grows with all items times the longest list.

    Args:
        lists: Items of each list, none twice in one list.
    """
    ordered: list[list[int]] = [[] for _ in lists]
    left = [list(items) for items in lists]
    groups = [list(range(len(lists)))]
    while groups:
        group = groups.pop()
        counts = Counter(item for index in group for item in left[index])
        by_next: dict[int, list[int]] = {}
        for index in group:
            item = min(left[index], key=lambda one: (-counts[one], one), default=None)
            if item is None or counts[item] < 2:
                ordered[index] += left[index]
            else:
                by_next.setdefault(item, []).append(index)
        for item, having in by_next.items():
            for index in having:
                left[index].remove(item)
                ordered[index].append(item)
            groups.append(having)
    return ordered


def _nodes_to_fold(tree: PromptTree, below: Sequence[int], cost: FoldCost) -> set[int]:
    """Ids of the nodes whose folding lowers the step cost, given what is folded below them."""
    folded: set[int] = set()
    copies = [1] * len(tree.nodes)  # nodes that would receive the tokens of a folded parent, by child
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
    places: list[tuple[int, TokenArray]] = []  # for each node's children: their parent, the tokens to prepend
    nothing = np.empty(0, np.int32)
    for node in tree.nodes:
        parent, prepended = places[node.parent] if node.parent >= 0 else (-1, nothing)
        segment = np.concatenate([prepended, node.token_ids]) if len(prepended) else node.token_ids
        if node.node_id not in folded:
            home = skeleton.add(parent, segment)
            places.append((home, nothing))
        else:
            if parent < 0:
                parent = skeleton.add(-1, nothing)
            places.append((parent, segment))
            home = skeleton.add(parent, segment.copy()) if node.prompts else parent
        for prompt in node.prompts:
            skeleton.prompt_nodes[prompt] = home
    return PromptTree.from_skeleton(skeleton)
