"""Python text of a reply, inspected without running it: what it defines, needs, reads and prints."""

from __future__ import annotations

import ast
import builtins
import contextlib
import doctest
import re
import symtable
import textwrap
import threading
import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_BUILTINS = frozenset(dir(builtins)) | {"__name__", "__file__", "__doc__"}
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_IMPORTS = (ast.Import, ast.ImportFrom)
_SCOPES = (*_DEFINITIONS, ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_FAILURES = (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError)
_READERS = frozenset({"input", "raw_input", "stdin", "fileinput"})
_PRINTERS = frozenset({"print", "stdout"})
_DEFINED = re.compile(
    r"^(?:[ \t]{0,8}(?:async )?def[ \t]{1,9}(\w{1,200})\b|class[ \t]{1,9}(\w{1,200})\b"
    r"|(\w{1,200})[ \t]{0,9}=(?!=))",
    re.MULTILINE,
)
_READS = re.compile(r"\b(?:input\(|stdin\b)")

_filters = threading.Lock()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No warnings of the parser's inside, such as of escapes in strings: they are the program's affair.

    The filters are the whole process's, so there is a single thread at a time.
    """
    with _filters, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def parsed(text: str) -> ast.Module | None:
    """The syntax tree of a text; None if it is no Python, or nested too deep for the parser."""
    try:
        with _quiet():
            return ast.parse(text)
    except _FAILURES:
        return None


def is_statement(node: ast.stmt) -> bool:
    """Whether a statement does something; an expression alone, such as a name, may be anything."""
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Call | ast.Await)
    return not (isinstance(node, ast.AnnAssign) and node.value is None) and not isinstance(node, ast.Pass)


def bound_names(nodes: Iterable[ast.AST]) -> set[str]:
    """The names that statements bind where they stand, not inside of functions and classes."""
    names: set[str] = set()
    left = list(nodes)
    while left:
        node = left.pop()
        if isinstance(node, _DEFINITIONS):
            names.add(node.name)
        elif isinstance(node, _IMPORTS):
            names |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        if not isinstance(node, _SCOPES):
            left += ast.iter_child_nodes(node)
    return names


@dataclass(frozen=True)
class Statement:
    """A statement of a module's top level.

    Attributes:
        text: Its lines, decorators included.
        node: Its tree.
        first: Index of its first line.
        end: Index after its last.
    """

    text: str
    node: ast.stmt
    first: int
    end: int

    @cached_property
    def binds(self) -> frozenset[str]:
        """The names that it binds."""
        return frozenset(bound_names([self.node]))

    @cached_property
    def needs(self) -> frozenset[str]:
        """The names of its module that it uses."""
        return free_names(self.text)

    @property
    def defines(self) -> bool:
        """Whether it is a function, a class or an import."""
        return isinstance(self.node, (*_DEFINITIONS, *_IMPORTS))

    @property
    def reads(self) -> bool:
        """Whether it reads standard input."""
        return _reads(self.node)

    @property
    def is_future_import(self) -> bool:
        """Whether it has to stand before all others."""
        return isinstance(self.node, ast.ImportFrom) and self.node.module == "__future__"


@dataclass(frozen=True)
class Source:
    """Python text of a reply.

    Attributes:
        text: The text.
        tree: Its tree; None if it does not parse.
    """

    text: str
    tree: ast.Module | None

    @staticmethod
    def of(text: str) -> Source:
        """Look at a text; one that is indented as a whole, or has the prompts of a console, loses them."""
        if text.lstrip().startswith(">>>"):
            text = _without_prompts(text)
        tree = parsed(text)
        if tree is None and text[:1] in (" ", "\t"):
            dedented = textwrap.dedent(text)
            if (tree := parsed(dedented)) is not None:
                text = dedented
        return Source(text, tree)

    @cached_property
    def statements(self) -> list[Statement]:
        """The statements of its top level."""
        if self.tree is None:
            return []
        lines = self.text.split("\n")
        found = []
        for node in self.tree.body:
            first = min([node.lineno, *(one.lineno for one in getattr(node, "decorator_list", []))]) - 1
            end = node.end_lineno or node.lineno
            found.append(Statement("\n".join(lines[first:end]) + "\n", node, first, end))
        return found

    @cached_property
    def defines(self) -> frozenset[str]:
        """Functions, classes and variables that it makes, a ``Solution``'s methods; no stubs, no imports."""
        if self.tree is None:
            return frozenset(name for found in _DEFINED.findall(self.text) for name in found if name)
        names: set[str] = set()
        for statement in self.statements:
            node = statement.node
            if isinstance(node, _IMPORTS) or _is_stub(node):
                continue
            names |= statement.binds - _imported(node)
            if isinstance(node, ast.ClassDef) and node.name == "Solution":
                names |= bound_names(one for one in node.body if not _is_stub(one))
        return frozenset(names)

    @cached_property
    def functions(self) -> frozenset[str]:
        """Those of ``defines`` that are functions or classes."""
        made = (one.binds for one in self.statements if isinstance(one.node, _DEFINITIONS))
        return self.defines & frozenset(name for names in made for name in names)

    @cached_property
    def binds(self) -> frozenset[str]:
        """All names of its top level."""
        if self.tree is None:
            return self.defines
        return frozenset(bound_names(self.tree.body))

    @cached_property
    def binding(self) -> dict[str, list[int]]:
        """For each name of its top level the statements that bind it, by their indices."""
        found: dict[str, list[int]] = {}
        for i, statement in enumerate(self.statements):
            for name in statement.binds:
                found.setdefault(name, []).append(i)
        return found

    @cached_property
    def changing(self) -> dict[str, list[int]]:
        """For each name the statements that may change what it stands for, without a side effect."""
        found: dict[str, list[int]] = {}
        for i, statement in enumerate(self.statements):
            if (
                isinstance(statement.node, ast.For | ast.While | ast.AugAssign | ast.Assign)
                and not statement.reads
            ):
                for name in statement.needs | statement.binds:
                    found.setdefault(name, []).append(i)
        return found

    @cached_property
    def needs(self) -> frozenset[str]:
        """The names that it uses and neither it nor Python defines."""
        return free_names(self.text)

    @cached_property
    def has_statements(self) -> bool:
        """Whether it is more than values."""
        return self.tree is not None and any(is_statement(node) for node in self.tree.body)

    @cached_property
    def reads(self) -> bool:
        """Whether it reads standard input."""
        return bool(_READS.search(self.text)) if self.tree is None else _reads(self.tree)

    @cached_property
    def replaces_stdin(self) -> bool:
        """Whether it puts something in the place of standard input, as tests do."""
        return self.tree is not None and any(
            isinstance(node, ast.Attribute) and node.attr == "stdin" and isinstance(node.ctx, ast.Store)
            for node in ast.walk(self.tree)
        )

    @cached_property
    def acts(self) -> bool:
        """Whether it does more than define and assign."""
        if self.tree is None:
            return True
        quiet = (*_DEFINITIONS, *_IMPORTS, ast.Assign, ast.AnnAssign)
        return any(is_statement(node) and not isinstance(node, quiet) for node in self.tree.body)

    @cached_property
    def prints(self) -> bool:
        """Whether it prints."""
        return self.tree is None or bool(_PRINTERS & set(_names(self.tree)))

    @cached_property
    def returns(self) -> bool:
        """Whether it is the body of a function."""
        return self.tree is not None and any(
            isinstance(node, ast.Return) for node in _outside_functions(self.tree)
        )

    @cached_property
    def only_defines(self) -> bool:
        """Whether it has nothing but functions, classes and imports, and no tests."""
        names = [one.node.name for one in self.statements if isinstance(one.node, _DEFINITIONS)]
        is_test = any(name.lower().startswith("test") for name in names)
        return bool(names) and not is_test and all(one.defines for one in self.statements)


def free_names(text: str) -> frozenset[str]:
    """The names that a module's text uses and neither it nor Python defines; none if that cannot be said."""
    try:
        with _quiet():
            top = symtable.symtable(text, "<reply>", "exec")
    except _FAILURES:
        return frozenset()
    used: set[str] = set()
    bound = {
        symbol.get_name() for symbol in top.get_symbols() if symbol.is_assigned() or symbol.is_imported()
    }
    left = [top]
    while left:
        table = left.pop()
        left += table.get_children()
        used |= {
            symbol.get_name()
            for symbol in table.get_symbols()
            if symbol.is_referenced() and (table is top or symbol.is_global())
        }
    return frozenset(used - bound - _BUILTINS)


def _names(tree: ast.AST) -> Iterator[str]:
    """Names and attributes that are read."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            yield node.attr


def _reads(tree: ast.AST) -> bool:
    return bool(_READERS & set(_names(tree))) or any(
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "open"
        and any(
            isinstance(value, ast.Constant) and value.value in (0, "/dev/stdin") for value in node.args[:1]
        )
        for node in ast.walk(tree)
    )


def _outside_functions(tree: ast.AST) -> Iterator[ast.AST]:
    left = [tree]
    while left:
        node = left.pop()
        yield node
        if not isinstance(node, _SCOPES):
            left += ast.iter_child_nodes(node)


def _imported(node: ast.AST) -> set[str]:
    """The names that a compound statement imports."""
    return bound_names(one for one in _outside_functions(node) if isinstance(one, _IMPORTS))


def _is_stub(node: ast.stmt) -> bool:
    """Whether a function has no body yet: a docstring, ``...``, ``pass`` or ``raise NotImplementedError``."""
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return False
    if any(_is_ellipsis(one) for one in ast.walk(node)):
        return True  # an excerpt: the rest is as it was
    for one in node.body:
        if isinstance(one, ast.Pass) or (isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant)):
            continue
        if (
            isinstance(one, ast.Raise)
            and one.exc is not None
            and "NotImplementedError" in set(_names(one.exc))
        ):
            continue
        return False
    return True


def _is_ellipsis(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and node.value.value is Ellipsis
    )


def _without_prompts(text: str) -> str:
    """What was typed in a console, without what it printed."""
    try:
        examples = doctest.DocTestParser().get_examples(textwrap.dedent(text))
    except ValueError:
        return text
    return "".join(example.source for example in examples)
