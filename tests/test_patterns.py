"""Patterns take time in proportion to the text: every one that a walk finds, on texts made against it.

Text comes from models, and a run has thousands of replies: a pattern that is quadratic in blanks holds one up
for minutes. For each pattern its own parse gives the attacks: up to each repeat, then what it repeats many
times, then something that does not fit. The measure is processor time at one size and at four times that
size: a linear pattern takes four times as long, a quadratic one sixteen times.
"""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path
from re import _constants as sre  # type: ignore[attr-defined]
from re import _parser  # type: ignore[attr-defined]

import pytest

from tests.growth import FACTOR, MAX_GROWTH, growth
from tests.scripts.loading import load_script

ROOT = Path(__file__).parents[1]
FOLDERS = ("treeshare", "tasks", "scripts/examples")
"""The other scripts read nothing that a model wrote."""

CALLS = {"compile", "search", "match", "fullmatch", "split", "sub", "subn", "findall", "finditer"}


# --- where patterns are ---


def calls_of_re(tree: ast.AST) -> list[ast.Call]:
    return [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "re"
        and node.func.attr in CALLS
    ]


def module_of(path: Path):
    relative = path.relative_to(ROOT)
    if relative.parts[0] == "scripts":
        return load_script(path.parent, path.stem)
    parts = relative.with_suffix("").parts
    return importlib.import_module(".".join(("treeshare", *parts) if parts[0] == "tasks" else parts))


def patterns_of(path: Path) -> dict[str, re.Pattern]:
    """All patterns of a file, by the place of the call that makes or uses each."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    calls = calls_of_re(tree)
    found, module = {}, None
    for call in calls:
        where = f"{path.relative_to(ROOT)}:{call.lineno}"
        flags = 0
        for word in ast.walk(ast.Expression(ast.Tuple([*call.args[1:], *(k.value for k in call.keywords)]))):
            if isinstance(word, ast.Attribute) and isinstance(getattr(re, word.attr, None), re.RegexFlag):
                flags |= getattr(re, word.attr)
        if isinstance(call.args[0], ast.Constant):
            found[where] = re.compile(call.args[0].value, flags)
            continue
        names = [
            target.id
            for node in tree.body
            if isinstance(node, ast.Assign) and call in ast.walk(node)
            for target in node.targets
            if isinstance(target, ast.Name)
        ]
        if names:
            module = module or module_of(path)
            found[where] = getattr(module, names[0])
        else:
            found[where] = None
    return found


def matched_in_place(path: Path) -> list[re.Pattern]:
    """Patterns of a file that are applied at one position only, by ``match`` and ``fullmatch``."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    in_place = {"match", "fullmatch"}
    names = {
        node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
    }
    methods = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    ]
    count = {
        name: sum(isinstance(n, ast.Name) and n.id == name for n in ast.walk(tree)) - 1 for name in names
    }
    found = {
        name
        for name in names
        if count[name] == sum(one.value.id == name and one.attr in in_place for one in methods)
    }
    module = module_of(path)
    return [pattern for name in found if isinstance(pattern := getattr(module, name, None), re.Pattern)]


FILES = {
    str(path.relative_to(ROOT)): path
    for folder in FOLDERS
    for path in sorted((ROOT / folder).rglob("*.py"))
    if re.search(r"^import re\n.*\bre\.", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    and ROOT / "treeshare/tasks" not in path.parents
    and path.name != "pattern_child.py"  # the user's patterns, in a process with a limit of time
}


def test_the_walk_sees_what_is_there():
    """All files that name the module, and under that name alone."""
    assert len(FILES) > 15
    assert {
        "tasks/stated_number.py",
        "tasks/statements.py",
        "treeshare/evals/replies/reasoning.py",
    } <= FILES.keys()
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                assert not (isinstance(node, ast.ImportFrom) and node.module in ("re", "regex")), path
                if isinstance(node, ast.Import):
                    names = [(alias.name, alias.asname) for alias in node.names]
                    assert not any(name == "regex" or (name == "re" and other) for name, other in names), path


# --- texts against a pattern ---


def samples(code, value) -> list[str]:
    """A few texts that a node of a pattern's parse matches, the shortest ones."""
    if code is sre.LITERAL:
        return [chr(value)]
    if code is sre.NOT_LITERAL:
        return ["a" if chr(value) != "a" else "b"]
    if code is sre.ANY:
        return ["a"]
    if code is sre.IN:
        return members(value)
    if code is sre.BRANCH:
        return [text for part in value[1] for text in sequence(part)[:1]]
    if code is sre.SUBPATTERN:
        return sequence(value[3])
    if code is sre.ATOMIC_GROUP:
        return sequence(value)
    if code in REPEATS:
        return [text * value[0] for text in sequence(value[2])] if value[0] else [""]
    if code is sre.GROUPREF:
        return [","]
    return [""]


REPEATS = (sre.MAX_REPEAT, sre.MIN_REPEAT, sre.POSSESSIVE_REPEAT)
CATEGORIES = {sre.CATEGORY_DIGIT: "7", sre.CATEGORY_SPACE: " \n", sre.CATEGORY_WORD: "a7"}


def members(items) -> list[str]:
    if items[0][0] is sre.NEGATE:
        inside = re.compile("|".join(re.escape(text) for text in members(items[1:])))
        return [text for text in "a 7x.\n" if not inside.fullmatch(text)][:2]
    found = []
    for code, value in items:
        if code is sre.LITERAL:
            found.append(chr(value))
        elif code is sre.RANGE:
            found.append(chr(value[0]))
        elif code is sre.CATEGORY:
            found += CATEGORIES.get(value, "-")
    return found


def sequence(nodes) -> list[str]:
    """Texts of a sequence: the first choice everywhere, and each choice of its last node that has any."""
    texts = [""]
    for code, value in nodes:
        options = samples(code, value)
        texts = [text + option for text in texts[:1] for option in options[:1]] + [
            texts[0] + option for option in options[1:]
        ]
    return texts


def pumps(nodes, before=""):
    """For each repeat what stands before it, and what it repeats."""
    for code, value in nodes:
        if code in REPEATS:
            yield from ((before, text) for text in sequence(value[2]) if text)
            yield from pumps(value[2], before)
        elif code is sre.SUBPATTERN:
            yield from pumps(value[3], before)
        elif code is sre.ATOMIC_GROUP:
            yield from pumps(value, before)
        elif code is sre.BRANCH:
            for part in value[1]:
                yield from pumps(part, before)
        elif code in (sre.ASSERT, sre.ASSERT_NOT):
            yield from pumps(value[1], before)
        before += samples(code, value)[0] if samples(code, value) else ""


PLAIN = [" ", "\n", "\t", "7", ",", "a", "{", "}", "`", "[", "(", "\\", "<", "#", "-", ".", "="]


def attacks(pattern: re.Pattern) -> list[tuple[str, str]]:
    nodes = list(_parser.parse(pattern.pattern, pattern.flags & ~re.DEBUG))
    found = {("", text): None for text in PLAIN}
    for text in sequence(nodes):
        found["", text] = None
        found[text, " "] = found[text, "7"] = None
    for before, text in pumps(nodes):
        found[before, text] = found["", before + text] = None
    return [attack for attack in found if attack[1]]


# --- measuring ---


def superlinear(pattern: re.Pattern, *, anywhere: bool = True) -> str:
    """The first attack that takes more than its share of time, ``anywhere`` if searches are made."""
    uses = [pattern.fullmatch, pattern.match]
    if anywhere:
        uses.append(lambda text: list(pattern.finditer(text)))
    for before, pump in attacks(pattern):
        for read in uses:
            if (times := growth(read, before, pump)) >= MAX_GROWTH:
                return f"{before!r} + {pump!r} * n: {times:.1f} times as long for {FACTOR} times the text"
    return ""


@pytest.mark.parametrize("name", FILES)
def test_no_pattern_is_superlinear(name):
    found = patterns_of(FILES[name])
    assert found, "imports re and has no pattern"
    only_there = matched_in_place(FILES[name])
    for where, pattern in found.items():
        if pattern is None:
            raise AssertionError(f"{where}: give the pattern a name in the module")
        assert superlinear(pattern, anywhere=pattern not in only_there) == "", where


@pytest.mark.parametrize(
    "pattern",
    [
        r"is:?[\s*]*\s*\$?\s*\d",  # as it once stood here: cubic in blanks
        r"\d[\d,]*(?![\d,]*/\d)",
        r"^[\s\-#*=]*outputs?[\s\-#*:=]*$",
        r"(?:a+)+b",
        r"<think>.*?</think>",
    ],
)
def test_a_pattern_that_is_superlinear_is_found(pattern):
    flags = re.MULTILINE | (re.DOTALL if "think" in pattern else 0)
    assert superlinear(re.compile(pattern, flags))


def test_the_way_a_pattern_is_used_counts():
    blanks = re.compile(r"\s*+\d")
    assert superlinear(blanks, anywhere=False) == ""
    assert superlinear(blanks)


@pytest.mark.parametrize("pattern", [r"\{[^{}\n]{0,200}=", r"a|b", r"(?<!#)#{4,}+ (?P<n>\d++)"])
def test_a_pattern_that_is_linear_is_not_found(pattern):
    assert superlinear(re.compile(pattern)) == ""
