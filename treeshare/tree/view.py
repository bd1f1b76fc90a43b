"""A prompt tree drawn in text, for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from treeshare.tree.prompt_tree import Node, PromptTree
    from treeshare.tree.stats import TreeStats


def render_tree(
    tree: PromptTree,
    num_completions: int | Sequence[int] = 1,
    *,
    decode: Callable[[Sequence[int]], str] | None = None,
    bytes_per_token: int | None = None,
    max_children: int = 8,
    max_depth: int = 8,
    max_snippet: int = 48,
) -> str:
    """Draw the tree, one line a node, and the totals below it.

    Args:
        tree: What to draw.
        num_completions: Completions of every prompt, or of each.
        decode: Token ids to text, for the snippets; without it they show token ids.
        bytes_per_token: KV bytes of a token (``kv_bytes_per_token``); adds KV bytes to the totals.
        max_children: Children drawn of the root; half as many a level further down, but at least one. The
            others are counted in one line.
        max_depth: Levels drawn below the root; deeper nodes are counted in one line.
        max_snippet: Characters of text drawn of a segment.

    Returns:
        Lines joined by newlines, without one at the end.
    """
    below = tree.completions_below(num_completions)
    prompts = tree.completions_below(1)
    sums = subtree_sums(tree)
    lines = []
    stack = [_Line("", "", tree.nodes[0])]
    while stack:
        prefix, indent, item = stack.pop()
        if isinstance(item, str):
            lines.append(prefix + item)
            continue
        snippet = snippet_of(item, decode, max_snippet)
        facts = f"{count(prompts[item.node_id], 'prompt')}, {count(below[item.node_id], 'completion')}"
        label = f"{count(item.num_tokens, 'token')} [{item.start}, {item.end})  {facts}  {snippet}".rstrip()
        lines.append(prefix + label)
        items = items_below(tree, item, sums, max_children, max_depth)
        for child in reversed(items):
            is_last = child is items[-1]
            line = _Line(
                indent + ("└─ " if is_last else "├─ "), indent + ("   " if is_last else "│  "), child
            )
            stack.append(line)
    return "\n".join([*lines, *totals(tree.stats(num_completions), bytes_per_token)])


class _Line(NamedTuple):
    prefix: str
    indent: str  # of the lines below it
    item: Node | str


class SubtreeSums(NamedTuple):
    """What a node and all below it have together."""

    num_nodes: int
    num_tokens: int
    num_prompts: int


def subtree_sums(tree: PromptTree) -> list[SubtreeSums]:
    """The sums of each node's subtree."""
    found = [SubtreeSums(1, node.num_tokens, len(node.prompts)) for node in tree.nodes]
    for node in reversed(tree.nodes[1:]):
        found[node.parent] = _add(found[node.parent], found[node.node_id])
    return found


def _add(a: SubtreeSums, b: SubtreeSums) -> SubtreeSums:
    return SubtreeSums(a.num_nodes + b.num_nodes, a.num_tokens + b.num_tokens, a.num_prompts + b.num_prompts)


def items_below(
    tree: PromptTree, node: Node, subtrees: list[SubtreeSums], max_children: int, max_depth: int
) -> list[Node | str]:
    """The children to draw, and a line that stands for those left out."""
    if not node.children:
        return []
    num_drawn = max(max_children >> node.depth, 1) if node.depth < max_depth else 0
    if len(node.children) == num_drawn + 1 and num_drawn:
        num_drawn += 1  # a line for one child left out would save nothing
    drawn: list[Node | str] = [tree.nodes[child] for child in node.children[:num_drawn]]
    rest = SubtreeSums(0, 0, 0)
    for child in node.children[num_drawn:]:
        rest = _add(rest, subtrees[child])
    if rest.num_nodes:
        left_out = f"{len(node.children) - num_drawn:,} more" if num_drawn else "deeper"
        facts = f"{count(rest.num_nodes, 'node')}, {count(rest.num_tokens, 'token')}"
        drawn.append(f"… {left_out}: {facts}, {count(rest.num_prompts, 'prompt')}")
    return drawn


def snippet_of(node: Node, decode: Callable[[Sequence[int]], str] | None, max_snippet: int) -> str:
    """The segment in at most about ``max_snippet`` characters, its beginning and its end, on one line."""
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
    # repr escapes newlines and everything else that could move a terminal's cursor.
    return repr(text)


def totals(stats: TreeStats, bytes_per_token: int | None) -> list[str]:
    """Lines that say what the whole tree has."""
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
    """The number and its noun, in the plural where it must be."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def _format_bytes(num_bytes: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.0f} {unit}" if unit == "bytes" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.1f} TiB"
