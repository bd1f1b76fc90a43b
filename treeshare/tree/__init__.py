"""Prompt trees: discovery, few-shot construction, statistics and views. No torch here.

Reading order: ``prompt_tree`` (nodes and the tree), ``radix`` (how shared prefixes are found), ``planner``
(which are worth a node), ``fewshot``, ``stats``, ``view``, ``graph`` (networkx).
"""

from treeshare.tree.fewshot import FewShotPrompts
from treeshare.tree.planner import FoldCost, fold_tree, step_cost, truncate_sharing
from treeshare.tree.prompt_tree import Node, PromptTree
from treeshare.tree.stats import KvBytes, TreeStats, kv_bytes_per_token
from treeshare.tree.view import render_tree

__all__ = [
    "FewShotPrompts",
    "FoldCost",
    "KvBytes",
    "Node",
    "PromptTree",
    "TreeStats",
    "fold_tree",
    "kv_bytes_per_token",
    "render_tree",
    "step_cost",
    "truncate_sharing",
]
