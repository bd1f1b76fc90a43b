"""Code without a fence: the runs of lines in a text that are Python.

A unit is a line that is not indented with what belongs to it; each is parsed once, so the time grows with the
text.
"""

from __future__ import annotations

import ast
import builtins
import re
import textwrap
from dataclasses import dataclass
from typing import Literal

from treeshare.evals.replies.source import Source, bound_names, is_statement, parsed

_CONTINUES = re.compile(r"(?:else|elif|except|finally)\b|[)\]}]")
_HEADING = re.compile(r"#{2,6} [A-Z]")
_OPENERS = ("(", "[", "{")
_CLOSERS = (")", "]", "}")

_Kind = Literal["code", "comment", "words"]


@dataclass(slots=True)
class _Unit:
    """Lines that belong together.

    Attributes:
        line: Number of the first.
        lines: With their ends.
    """

    line: int
    lines: list[str]

    @property
    def text(self) -> str:
        return "".join(self.lines)


def code_runs(text: str) -> list[tuple[int, Source]]:
    """The longest pieces of a text that are Python, with the number of their first line."""
    tree = parsed(text)
    if tree is not None and _is_whole(tree):
        return [(0, Source(text, tree))]
    runs: list[tuple[int, Source]] = []
    units: list[_Unit] = []
    code_end = 0  # of the run's units: those after it are comments
    names: set[str] = set()
    before = "\n"
    for unit in [*_units(text), None]:
        kind = "words" if unit is None or _is_heading(unit, before) else _kind(unit, names)
        before = unit.lines[-1] if unit is not None else ""
        if unit is not None and (kind == "code" or (kind == "comment" and units)):
            units.append(unit)
            if kind == "code":
                code_end = len(units)
        elif kind == "words":
            if units:
                code = "".join(one.text for one in units[:code_end])
                runs.append((units[0].line, Source.of(_dedented(code))))
            units = []
    return runs


def _is_heading(unit: _Unit, before: str) -> bool:
    """Whether a comment is a heading of Markdown's: apart, of second rank or lower, as programs have few."""
    is_apart = not before.strip() and len(unit.lines) > 1 and not any(line.strip() for line in unit.lines[1:])
    return is_apart and _HEADING.match(unit.lines[0]) is not None


def _is_whole(tree: ast.Module) -> bool:
    """Whether a text is code from its first word to its last, strings that explain it included."""
    names = bound_names(tree.body)
    return (
        any(is_statement(node) for node in tree.body)
        and all(is_statement(node) or _is_string(node) for node in tree.body)
        and not any(_is_unknown_call(node, names) for node in tree.body)
    )


def _is_string(node: ast.stmt) -> bool:
    value = node.value if isinstance(node, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)


def _is_unknown_call(node: ast.stmt, names: set[str]) -> bool:
    """Whether a statement calls a function that is not there: O(n), as people write it."""
    call = node.value if isinstance(node, ast.Expr) else None
    if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name)):
        return False
    return call.func.id not in names and "*" not in names and not hasattr(builtins, call.func.id)


def _units(text: str) -> list[_Unit]:
    *whole, rest = text.split("\n")  # splitlines() would also cut inside of strings
    lines = [f"{line}\n" for line in whole] + ([rest] if rest else [])
    units, is_whole = _cut(lines, 0, follow=True)
    if not is_whole:  # a bracket or a string that never closes: words, perhaps
        last = units.pop()
        units += _cut(lines[last.line :], last.line, follow=False)[0]
    return units


def _cut(lines: list[str], first: int, *, follow: bool) -> tuple[list[_Unit], bool]:
    """Cut lines into units.

    Args:
        lines: With their ends.
        first: Number of the first.
        follow: Whether brackets that end a line and triple quotes hold units together.
    """
    units: list[_Unit] = []
    goes_on = _goes_on(lines)
    quote = bracket = ""
    is_decorated = False
    for number, line in enumerate(lines, start=first):
        begins = bool(line.strip()) and line[0] not in " \t" and not quote and not is_decorated
        begins = begins and not bracket and not _CONTINUES.match(line) and not goes_on[number - first]
        if begins or not units:
            units.append(_Unit(number, [line]))
        else:
            units[-1].lines.append(line)
        if line.strip() and line[0] not in " \t":
            is_decorated = not quote and line[0] == "@"
        if not follow:
            continue
        if bracket and not quote and line[0] in _CLOSERS:
            bracket = ""
        if not quote and line[0] not in " \t\n" and line.rstrip().endswith(_OPENERS):
            bracket = line.rstrip()[-1]
        for mark in ('"""', "'''"):
            if quote in ("", mark) and line.count(mark) % 2:
                quote = "" if quote else mark
    return units, not (quote or bracket)


def _goes_on(lines: list[str]) -> list[bool]:
    """For each line whether it is a comment, which may stand anywhere, inside of indented code."""
    found = []
    is_indented = False
    for line in reversed(lines):
        is_comment = line.startswith("#")
        found.append(is_comment and is_indented)
        if line.strip() and not is_comment:
            is_indented = line[0] in " \t"
    return found[::-1]


def _kind(unit: _Unit, names: set[str]) -> _Kind:
    """Whether a unit is code; the names that it binds are noted."""
    tree = parsed(_dedented(unit.text))
    if tree is None:
        return "words"
    if not tree.body:
        return "comment"
    if not any(is_statement(node) for node in tree.body):
        return "comment" if all(_is_string(node) for node in tree.body) else "words"
    if _is_unknown_call(tree.body[0], names):
        return "words"
    names |= bound_names(tree.body)
    return "code"


def _dedented(text: str) -> str:
    return textwrap.dedent(text) if text[:1] in (" ", "\t") else text
