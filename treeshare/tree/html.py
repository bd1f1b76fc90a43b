"""A prompt tree as HTML, for a notebook."""

from __future__ import annotations

import sys
from html import escape
from typing import TYPE_CHECKING

from treeshare.tree.view import count, items_below, snippet_of, subtree_sums, totals

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from treeshare.tree.view import Drawable

_INDENT = 'style="margin-left:1.1em"'


def tree_html(
    tree: Drawable,
    num_completions: int | Sequence[int] = 1,
    *,
    decode: Callable[[Sequence[int]], str] | None = None,
    bytes_per_token: int | None = None,
    max_children: int = 32,
    max_depth: int = 8,
    max_snippet: int = 80,
) -> str:
    """The tree as nested lists that open and close, without scripts, style sheets or external files.

    Args:
        tree: A ``PromptTree``.
        num_completions: As for ``render_tree``, like all that follow.
        decode: Turns token ids into text.
        bytes_per_token: KV bytes of a token.
        max_children: Maximum number of the root's children to draw.
        max_depth: Maximum number of levels to draw below the root.
        max_snippet: Maximum number of characters to draw of a segment.

    Returns:
        A ``div`` element; the length of a bar is a node's share of all unique tokens.
    """
    below = tree.completions_below(num_completions)
    stats = tree.stats(num_completions)
    sums = subtree_sums(tree)
    parts = ["<div>", *(f"<div>{escape(line)}</div>" for line in totals(stats, bytes_per_token))]
    stack: list[int | str] = [0]
    while stack:
        item = stack.pop()
        if isinstance(item, str):  # a closing tag, or the line that counts the nodes that are not drawn
            parts.append(item)
            continue
        node = tree.nodes[item]
        label = _label(
            count(node.num_tokens, "token"),
            count(below[item], "completion"),
            escape(snippet_of(node, decode, max_snippet)),
            node.num_tokens / max(stats.unique_tokens, 1),
        )
        children = items_below(tree, node, sums, max_children, max_depth)
        if not children:
            parts.append(f"<div {_INDENT}>{label}</div>")
            continue
        parts.append(f"<details{' open' * (node.depth < 2)} {_INDENT}><summary>{label}</summary>")
        stack.append("</details>")
        stack += [
            f"<div {_INDENT}>{escape(child)}</div>" if isinstance(child, str) else child.node_id
            for child in reversed(children)
        ]
    return "".join([*parts, "</div>"])


def in_notebook() -> bool:
    """Whether this process is the kernel of a Jupyter notebook."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return hasattr(shell, "kernel")


def _label(tokens: str, completions: str, snippet: str, share: float) -> str:
    bar = (
        '<span style="display:inline-block;width:8em;background:rgba(128,128,128,.2)">'
        f'<span style="display:block;width:{share:.1%};min-width:1px;height:.7em;background:#3b7dd8"></span>'
        "</span>"
    )
    return f"{bar} {tokens}, {completions} <code>{snippet}</code>"
