"""What the README and the documents show runs, and leads where they say it leads."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from tests.evals.tiny_text import save_text_model
from tests.scripts.loading import load_script
from treeshare.cli.app import app

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/*.md", "docs/bench/*.md", "tasks/*.md")
    for path in ROOT.glob(pattern)
)
EMBEDDED = '"smollm2-135m"'
ELSEWHERE = ("tasks/README.md",)
"""Pages whose code another test runs, with what it needs beside it (tests/tasks/test_own_task.py)."""


def text_of(name):
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(name):
    return re.findall(r"^```python\n(.*?)^```", text_of(name), re.DOTALL | re.MULTILINE)


BLOCKS = [
    pytest.param(code, id=f"{name}-{number}")
    for name in PAGES
    if name not in ELSEWHERE
    for number, code in enumerate(blocks(name))
]


def printed_by(code):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "document", "exec"), {"__name__": "document"})
    return printed.getvalue()


@pytest.mark.slow
def test_the_first_example_prints_what_the_readme_says():
    """In float32, so on every CPU: levels and threads do not change a token."""
    code, expected = re.search(r"```python\n(.*?)```\n\n```\n(.*?)```", README, re.DOTALL).groups()
    assert printed_by(code) == expected


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return str(save_text_model(tmp_path_factory.mktemp("model")))


def test_there_are_blocks():
    assert {"README.md", "docs/python.md", "docs/constraints.md", "docs/math_judge.md"} <= {
        parameter.id.rpartition("-")[0] for parameter in BLOCKS
    }


@pytest.mark.parametrize("code", BLOCKS)
def test_a_block_runs(code, tiny):
    """Alone, on a tiny model: what that says is nonsense."""
    printed_by(code.replace(EMBEDDED, repr(tiny)))


@pytest.mark.slow
@pytest.mark.parametrize("code", BLOCKS)
def test_a_block_runs_on_the_embedded_model(code):
    printed_by(code)


def test_the_live_example(tiny):
    """How much of the nonsense there is, is no nonsense."""
    code = blocks("docs/python.md")[0]
    assert code.count(EMBEDDED) == 2
    *ended, versions, branches, beams, served = printed_by(code.replace(EMBEDDED, repr(tiny))).splitlines()
    assert len(ended) == 2
    assert all(re.fullmatch(r"\d+ completions, (None|answer . is ahead by \d+)", line) for line in ended)
    assert (versions, branches, beams, served) == ("[0, 1]", "(5,) (6,)", "4 beams", "[16, 16]")


def shown_commands(name):
    """Lines of indented blocks, and of fenced ones that are not Python."""
    text = re.sub(r"^```python\n.*?^```", "", text_of(name), flags=re.DOTALL | re.MULTILINE)
    fenced = "\n".join(re.findall(r"^```\n(.*?)^```", text, re.DOTALL | re.MULTILINE))
    lines = re.findall(r"^    (treeshare .+)$", text, re.MULTILINE) + fenced.splitlines()
    found = [re.fullmatch(r"treeshare ([a-z]+ .+?|doctor)(?: +#.*)?", line) for line in lines]
    return [match[1] for match in found if match]


def test_the_commands_exist_with_their_options():
    commands = get_command(app).commands
    shown = [line for name in PAGES if name != "docs/commands.md" for line in shown_commands(name)]
    assert len(shown) >= 16
    for line in shown:
        name, *arguments = shlex.split(line)
        known = {option for parameter in commands[name].params for option in parameter.opts}
        assert {argument for argument in arguments if re.match(r"--?[a-z]", argument)} <= known, line


@pytest.mark.parametrize("name", PAGES)
def test_what_is_named_exists(name):
    """Links, with their anchors, and files in backticks."""
    text, folder = text_of(name), (ROOT / name).parent
    missing = []
    for target, _, anchor in re.findall(r"\]\(([^)#:\s]*)(#([^)\s]+))?\)", text):
        file = (folder / target).resolve() if target else ROOT / name
        if not file.exists():
            missing.append(target)
        elif anchor and anchor not in anchors(file.read_text(encoding="utf-8")):
            missing.append(f"{target}#{anchor}")
    files = re.findall(r"`((?:tests|treeshare|scripts|tasks|docs)/[\w./-]+)`", text)
    if name not in ("CHANGELOG.md", "docs/decisions.md", "docs/map.md"):  # history; the map has its own test
        missing += [file for file in files if not (ROOT / file).exists()]
    assert missing == []


def anchors(text):
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_lengths():
    assert len(README.split()) <= 900
    assert len(text_of("ARCHITECTURE.md").splitlines()) <= 120
    assert len(text_of("CONTRIBUTING.md").splitlines()) <= 60


def test_the_site_is_built(tmp_path):
    """Strictly: a link that leads nowhere, or a name that the package does not have, ends it."""
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "SamplingParams" in (tmp_path / "api.html").read_text(encoding="utf-8")


A, B = "[a](https://host/x) ![b](no.png)", "[c](gone.md)"
LINKS = [
    ("[a](models.md)", "python.md", "[a](models.md)"),
    ("[a](../tasks/README.md#x)", "python.md", "[a](tasks/README.md#x)"),
    ("[a](docs/map.md)", "ARCHITECTURE.md", "[a](map.md)"),
    ("[a](../docs/map.md)", "tasks/README.md", "[a](../map.md)"),
    ("[demo.sh](../scripts/demo.sh)", "examples.md", "`scripts/demo.sh`"),
    ("[a demo](../scripts/demo.sh)", "examples.md", "a demo (`scripts/demo.sh`)"),
    (A, "python.md", A),
    (B, "python.md", B),
]


@pytest.mark.parametrize(("markdown", "uri", "expected"), LINKS)
def test_links_of_the_site(markdown, uri, expected):
    site_pages = load_script(ROOT / "scripts", "site_pages")
    assert site_pages.site_links(markdown, uri) == expected
