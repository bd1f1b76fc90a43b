"""Prompt trees: finding shared prefixes, few-shot prompts, statistics and drawing, all without torch.

Reading order: ``node`` and ``prompt_tree``, ``radix`` (how shared prefixes are found), ``planner`` (which
shared prefixes are worth a node), ``fewshot``, ``stats``, ``forecast`` (what a run will take), ``shards``
(how workers divide it), ``view``, ``html``, ``graph`` (networkx).
"""

from treeshare.config import FoldCost
from treeshare.tree.fewshot import SHOT_CHOICES, FewShotPrompts, Shot, ShotChoice, choose_shots
from treeshare.tree.node import Node
from treeshare.tree.planner import fold_tree, step_cost, truncate_sharing
from treeshare.tree.prompt_tree import PromptTree
from treeshare.tree.stats import KvBytes, TreeStats, kv_bytes_per_token
from treeshare.tree.view import render_tree

__all__ = [
    "SHOT_CHOICES",
    "FewShotPrompts",
    "FoldCost",
    "KvBytes",
    "Node",
    "PromptTree",
    "Shot",
    "ShotChoice",
    "TreeStats",
    "choose_shots",
    "fold_tree",
    "kv_bytes_per_token",
    "render_tree",
    "step_cost",
    "truncate_sharing",
]
