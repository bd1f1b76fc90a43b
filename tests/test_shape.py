"""Modules and classes stay small: one noun each, not a limit met by packing lines or by mixins."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("treeshare", "tasks", "scripts", "tests")
SUFFIXES = (".py", ".h", ".cpp", ".js", ".css", ".sh")

MAX_MODULE_LINES = 400
MAX_CLASS_LINES = 250
MAX_METHODS = 20


@dataclass(frozen=True, kw_only=True)
class Excess:
    """What is above a limit.

    Attributes:
        name: A file, or a file and its class.
        reason: The figure.
    """

    name: str
    reason: str


def excesses(name: str, text: str) -> list[Excess]:
    """What in a file is above a limit."""
    found = []
    num_lines = len(text.splitlines())
    if num_lines > MAX_MODULE_LINES:
        found.append(Excess(name=name, reason=f"{num_lines} lines"))
    if name.endswith(".py"):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ClassDef):
                found += [
                    Excess(name=f"{name}: {node.name}", reason=reason) for reason in _class_excesses(node)
                ]
    return found


def _class_excesses(node: ast.ClassDef) -> list[str]:
    first_line = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    num_lines = (node.end_lineno or node.lineno) - first_line + 1
    num_methods = sum(_is_method(member) for member in node.body)
    reasons = [f"{num_lines} lines"] if num_lines > MAX_CLASS_LINES else []
    return reasons + ([f"{num_methods} methods"] if num_methods > MAX_METHODS else [])


def _is_method(member: ast.stmt) -> bool:
    """Whether a member of a class is a method; properties, their setters too, are not counted."""
    if not isinstance(member, ast.FunctionDef | ast.AsyncFunctionDef):
        return False
    names = [ast.unparse(decorator).rpartition(".")[2] for decorator in member.decorator_list]
    return not {"property", "cached_property", "setter", "deleter"}.intersection(names)


def files() -> dict[str, str]:
    """Every file of code by its path in the repository."""
    found = (path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix in SUFFIXES)
    return {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in found}


def test_nothing_is_above_a_limit():
    texts = files()
    assert len(texts) > 300
    assert [excess for name, text in texts.items() for excess in excesses(name, text)] == []


def test_functions_and_properties():
    """Private and special methods count, properties and inner functions do not."""
    body = "\n".join(
        f"    @property\n    def p{i}(self): return {i}\n    @p{i}.setter\n    def p{i}(self, to): pass"
        for i in range(30)
    )
    body += "\n    async def f(self):\n        def inner(): pass\n    def __len__(self): return 0"
    (node,) = ast.parse(f"class Wide:\n{body}\n").body
    assert isinstance(node, ast.ClassDef)
    assert sum(map(_is_method, node.body)) == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x = 1\n" * 401, ["m.py"]),
        ("x = 1\n" * 400, []),
        ("class Long:\n" + "    x = 1\n" * 250, ["m.py: Long"]),
        ("class Long:\n" + "    x = 1\n" * 249, []),
        ("@dataclass\nclass Long:\n" + "    x = 1\n" * 249, ["m.py: Long"]),
        ("class Wide:\n" + "".join(f"    def f{i}(self): pass\n" for i in range(21)), ["m.py: Wide"]),
        ("class Wide:\n" + "".join(f"    def f{i}(self): pass\n" for i in range(20)), []),
        ("def f():\n    class Inner:\n" + "        x = 1\n" * 250, ["m.py: Inner"]),
    ],
)
def test_a_limit_that_is_passed_is_found(text, expected):
    assert [excess.name for excess in excesses("m.py", text)] == expected


def test_other_languages_have_lines_only():
    assert [excess.name for excess in excesses("kernel.h", "class {\n" * 401)] == ["kernel.h"]
