"""Makes code of a reply fit to follow a prompt that is code too."""

from __future__ import annotations

import ast
import textwrap
from typing import TYPE_CHECKING

from treeshare.evals.replies.source import Source, parsed

if TYPE_CHECKING:
    from collections.abc import Iterator


def without_future_imports(text: str) -> str:
    """A program that may stand after other code, with annotations as the future import makes them.

    ``from __future__ import annotations`` keeps annotations as text; with them in quotation marks it is not
    needed.
    """
    source = Source.of(text)
    futures = [one.node for one in source.statements if one.is_future_import]
    if not futures:
        return text
    assert source.tree is not None
    edits: list[tuple[ast.expr | ast.stmt, str]] = [(node, "pass") for node in futures]
    if any(alias.name == "annotations" for node in futures for alias in getattr(node, "names", [])):
        edits += [(node, repr(ast.unparse(node))) for node in _annotations(source.tree)]
    lines = [line.encode("utf-8", "surrogatepass") for line in source.text.split("\n")]
    for node, new in sorted(edits, key=lambda edit: (edit[0].lineno, edit[0].col_offset), reverse=True):
        assert node.end_lineno is not None
        first, last = node.lineno - 1, node.end_lineno - 1
        tail = lines[last][node.end_col_offset :]
        lines[first : last + 1] = [lines[first][: node.col_offset] + new.encode() + tail]
    return b"\n".join(lines).decode("utf-8", "surrogatepass")


def as_body(prompt: str, code: str) -> str:
    """The body of a function, indented so that it continues where a prompt ends."""
    dedented = textwrap.dedent(code)
    first, _, rest = dedented.partition("\n")
    indented = textwrap.indent(dedented, "    ")
    tries = (indented, f"    {first}\n{textwrap.indent(textwrap.dedent(rest), '    ')}")
    return next((body for body in tries if parsed(prompt + body) is not None), code)


def _annotations(tree: ast.AST) -> Iterator[ast.expr]:
    for node in ast.walk(tree):
        if isinstance(node, ast.arg | ast.AnnAssign) and node.annotation is not None:
            yield node.annotation
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.returns is not None:
            yield node.returns
