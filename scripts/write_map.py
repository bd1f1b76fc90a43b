"""Write ``docs/map.md``: every file of the package, what it is, and where it is tested.

What a file is: the first line of its docstring or head comment. Where it is tested is written in the map by
hand and kept; a new file gets the test that mirrors its path.

    .venv/bin/python scripts/write_map.py
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
MAP = ROOT / "docs" / "map.md"
SUFFIXES = {".py", ".h", ".cpp", ".js", ".css"}

HEAD = """# Map

All files of the package, one per line. Packages are in the order of imports: a file may import from its own
package and from those below it. `scripts/write_map.py` takes the second column from the files' docstrings;
the last column, paths below `tests/`, is written by hand. `tests/test_map.py` checks this page.
"""

PACKAGES = {
    "cli": "treeshare/cli",
    "tasks": "tasks",
    "integrations": "treeshare/integrations",
    "evals": "treeshare/evals",
    "runs": "treeshare/runs",
    "engine": "treeshare/engine",
    "sampling": "treeshare/sampling",
    "models": "treeshare/models",
    "attention": "treeshare/attention",
    "kv": "treeshare/kv",
    "tree": "treeshare/tree",
    "text": "treeshare/text",
    "native": "treeshare/native",
}
"""The packages by name, in the order of imports; what lies in none of them is below all."""

ROW = re.compile(r"\| `(?P<file>[^`]+)` \| (?P<summary>.*) \| (?P<tests>[^|]*) \|")


def files(root: Path = ROOT) -> list[str]:
    """Every file of the package by its path in the repository; an ``__init__.py`` is its package's line."""
    found = [*(root / "treeshare").rglob("*"), *(root / "tasks").rglob("*")]
    paths = {
        path.relative_to(root).as_posix()
        for path in found
        if path.suffix in SUFFIXES and not path.is_relative_to(root / "treeshare" / "tasks")
    }
    return sorted(path for path in paths if not path.endswith("__init__.py"))


def summary(path: Path) -> str:
    """The first line of a file's docstring, or of the comment at its head."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        text = ast.get_docstring(ast.parse(text)) or ""
    elif path.suffix == ".css":
        return "The page's style sheet."
    elif path.suffix == ".js":
        return "The page's script."
    paragraph = re.split(r"\n\s*\n|\n(?!//)", re.sub(r"(?m)^// ?", "", text).strip())[0]
    sentence = re.split(r"(?<=[.?]) (?=[A-Z])|; ", " ".join(paragraph.split()))[0]
    return sentence.rstrip(".").replace("``", "`").replace("|", "\\|")


def tests_by_file(text: str) -> dict[str, str]:
    """The map's last column: the tests of each file, as they are written there."""
    return {match["file"]: match["tests"].strip() for match in ROW.finditer(text)}


def mirrored(path: str) -> str:
    """The test that has a file's own path: ``treeshare/kv/store.py`` is tested by ``kv/test_store.py``."""
    inside = Path(path.removeprefix("treeshare/"))
    test = inside.with_name(f"test_{inside.stem}.py").as_posix()
    return f"`{test}`" if (ROOT / "tests" / test).is_file() else ""


def written(text: str, root: Path = ROOT) -> str:
    """The map as the files are now, with the tests that ``text``, the map so far, names."""
    tests = tests_by_file(text)
    left = files(root)
    parts = [HEAD]
    for name, folder in [*PACKAGES.items(), ("below all", "treeshare")]:
        rows = [path for path in left if path.startswith(f"{folder}/")]
        left = [path for path in left if path not in rows]
        initial = root / folder / "__init__.py"
        title = f"## {name}\n{summary(initial)}\n" if folder != "treeshare" else f"## {name}\n"
        lines = [
            f"| `{path}` | {summary(root / path)} | {tests.get(path) or mirrored(path)} |" for path in rows
        ]
        parts.append("\n".join([title, "| file | what | tests |", "|---|---|---|", *lines, ""]))
    return "\n".join(parts)


if __name__ == "__main__":
    MAP.write_text(written(MAP.read_text(encoding="utf-8") if MAP.exists() else ""), encoding="utf-8")
