"""A prompt tree drawn in text, for a terminal."""

from __future__ import annotations

import bisect
import itertools
import unicodedata
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from treeshare.tree.node import Node
    from treeshare.tree.stats import TreeStats


class Drawable(Protocol):
    """The part of ``PromptTree`` that drawing needs: with it, drawing does not import ``prompt_tree``."""

    @property
    def nodes(self) -> tuple[Node, ...]:
        """All nodes, depth-first."""

    def completions_below(self, num_completions: int | Sequence[int] = 1) -> tuple[int, ...]:
        """See ``PromptTree.completions_below``."""

    def stats(self, num_completions: int | Sequence[int] = 1) -> TreeStats:
        """See ``PromptTree.stats``."""


def render_tree(
    tree: Drawable,
    num_completions: int | Sequence[int] = 1,
    *,
    decode: Callable[[Sequence[int]], str] | None = None,
    bytes_per_token: int | None = None,
    max_children: int = 8,
    max_depth: int = 8,
    max_snippet: int = 48,
    max_width: int | None = None,
) -> str:
    """Draw the tree with one line per node, and the totals below it.

    Args:
        tree: A ``PromptTree``.
        num_completions: Completions per prompt: an integer for all prompts, or a list with one for each.
        decode: Turns token ids into text; without it, token ids are shown.
        bytes_per_token: KV bytes of a token (``kv_bytes_per_token``); adds KV bytes to the totals.
        max_children: Maximum number of the root's children to draw. It halves with every level, but is at
            least 1. A last line counts the nodes that are not drawn.
        max_depth: Maximum number of levels to draw below the root.
        max_snippet: Maximum number of characters to draw of a segment.
        max_width: Columns of the terminal, which no line of a node is wider than; None for any width.

    Returns:
        The lines, without a newline at the end.
    """
    below = tree.completions_below(num_completions)
    prompts = tree.completions_below(1)
    sums = subtree_sums(tree)
    lines = []
    stack = [_Line("", "", tree.nodes[0])]
    while stack:
        prefix, indent, item = stack.pop()
        if isinstance(item, str):
            lines.append(_fitted(prefix + item, max_width))
            continue
        facts = f"{count(prompts[item.node_id], 'prompt')}, {count(below[item.node_id], 'completion')}"
        label = f"{prefix}{count(item.num_tokens, 'token')} [{item.start}, {item.end})  {facts}"
        room = max_snippet
        if max_width is not None:
            room = max(min(room, max_width - len(label) - len("  ''")), 1)
        lines.append(_fitted(f"{label}  {snippet_of(item, decode, room)}".rstrip(), max_width))
        items = items_below(tree, item, sums, max_children, max_depth)
        for child in reversed(items):
            is_last = child is items[-1]
            line = _Line(
                indent + ("└─ " if is_last else "├─ "), indent + ("   " if is_last else "│  "), child
            )
            stack.append(line)
    return "\n".join([*lines, *totals(tree.stats(num_completions), bytes_per_token)])


def _fitted(line: str, max_width: int | None) -> str:
    """The line, its end left out where it is wider; letters of east Asian scripts take two columns."""
    if max_width is None:
        return line
    widths = (2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in line)
    columns = list(itertools.accumulate(widths))
    if not columns or columns[-1] <= max_width:
        return line
    return line[: bisect.bisect_right(columns, max_width - 1)] + "…"


class _Line(NamedTuple):
    prefix: str
    indent: str  # for the lines of the subtree
    item: Node | str


class SubtreeSums(NamedTuple):
    """Sums over a node's subtree, the node included."""

    num_nodes: int
    num_tokens: int
    num_prompts: int


def subtree_sums(tree: Drawable) -> list[SubtreeSums]:
    """The sums over each node's subtree, by node id."""
    sums = [SubtreeSums(1, node.num_tokens, len(node.prompts)) for node in tree.nodes]
    for node in reversed(tree.nodes[1:]):
        sums[node.parent] = _add(sums[node.parent], sums[node.node_id])
    return sums


def _add(a: SubtreeSums, b: SubtreeSums) -> SubtreeSums:
    return SubtreeSums(a.num_nodes + b.num_nodes, a.num_tokens + b.num_tokens, a.num_prompts + b.num_prompts)


def items_below(
    tree: Drawable, node: Node, subtrees: list[SubtreeSums], max_children: int, max_depth: int
) -> list[Node | str]:
    """The children to draw, and a line that counts the nodes that are not drawn."""
    if not node.children:
        return []
    num_drawn = max(max_children >> node.depth, 1) if node.depth < max_depth else 0
    if len(node.children) == num_drawn + 1 and num_drawn:
        num_drawn += 1  # the line that counts a single child would take as much space as the child
    drawn: list[Node | str] = [tree.nodes[child] for child in node.children[:num_drawn]]
    rest = SubtreeSums(0, 0, 0)
    for child in node.children[num_drawn:]:
        rest = _add(rest, subtrees[child])
    if rest.num_nodes:
        not_drawn = f"{len(node.children) - num_drawn:,} more" if num_drawn else "deeper"
        facts = f"{count(rest.num_nodes, 'node')}, {count(rest.num_tokens, 'token')}"
        drawn.append(f"… {not_drawn}: {facts}, {count(rest.num_prompts, 'prompt')}")
    return drawn


def snippet_of(node: Node, decode: Callable[[Sequence[int]], str] | None, max_snippet: int) -> str:
    """The segment on one line; a longer text is cut in the middle to about ``max_snippet`` characters."""
    ids = node.token_ids.tolist()
    if not ids:
        return ""
    if decode is None:
        shown = ids if len(ids) <= 8 else [*ids[:5], "…", *ids[-2:]]
        return f"({' '.join(map(str, shown))})"
    text = decode(ids)
    if len(text) > max_snippet:
        tail = max_snippet // 3
        head = max(max_snippet - tail - 1, 1)
        text = text[:head] + "…" + (text[-tail:] if tail else "")
    # repr escapes newlines and all control characters that a terminal would act on.
    return repr(text)


def totals(stats: TreeStats, bytes_per_token: int | None) -> list[str]:
    """Lines with the counts of the whole tree."""
    lines = [
        f"{count(stats.num_prompts, 'prompt')}, {count(stats.num_completions, 'completion')}, "
        f"{count(stats.num_nodes, 'node')}, depth {stats.depth}",
        f"{stats.logical_tokens:,} logical tokens, {stats.unique_tokens:,} unique: "
        f"sharing ratio {stats.sharing_ratio:.2f}",
    ]
    if bytes_per_token is not None:
        unique, logical = stats.kv_bytes(bytes_per_token)
        lines.append(f"prompt KV {_format_bytes(unique)} instead of {_format_bytes(logical)}")
    return lines


def count(number: int, noun: str) -> str:
    """The number and its noun, in the plural where needed: ``1 node``, ``2 nodes``."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def _format_bytes(num_bytes: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.0f} {unit}" if unit == "bytes" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.1f} TiB"
