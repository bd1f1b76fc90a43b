"""What the README shows runs, and says what the README says."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from tests.evals.tiny_text import save_text_model
from treeshare.cli.app import app

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON, OUTPUT = re.search(r"```python\n(.*?)```\n\n```\n(.*?)```", README, re.DOTALL).groups()


@pytest.mark.slow
def test_the_python_example():
    """On the embedded model; its first words depend on roundings, their number does not."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(PYTHON, "README.md", "exec"), {})
    lines = printed.getvalue().splitlines()
    assert [line.split()[0] for line in lines] == [line.split()[0] for line in OUTPUT.splitlines()]
    assert all(len(eval(line.split(maxsplit=1)[1])) == 4 for line in lines)


def test_the_live_example(tmp_path):
    """On a tiny model: what is printed is nonsense, how much of it is not."""
    code = re.search(r"## Beyond `generate`\n\n```python\n(.*?)```", README, re.DOTALL)[1]
    assert code.count('"smollm2-135m"') == 2
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(
            compile(
                code.replace('"smollm2-135m"', repr(str(save_text_model(tmp_path)))), "README.md", "exec"
            ),
            {},
        )
    *ended, versions, branches, beams, served = printed.getvalue().splitlines()
    assert len(ended) == 2
    assert all(re.fullmatch(r"\d+ completions, (None|answer . is ahead by \d+)", line) for line in ended)
    assert (versions, branches, beams, served) == ("[0, 1]", "(5,) (6,)", "4 beams", "[16, 16]")


def test_the_commands_exist_with_their_options():
    commands = get_command(app).commands
    shown = re.findall(r"^    treeshare (.+?)(?:  +#.*)?$", README, re.MULTILINE)
    assert len(shown) >= 8
    for line in shown:
        name, *arguments = shlex.split(line)
        known = {option for parameter in commands[name].params for option in parameter.opts}
        assert {argument for argument in arguments if argument.startswith("-")} <= known


@pytest.mark.parametrize("name", ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "tasks/README.md"])
def test_what_is_named_exists(name):
    """Links, and files in backticks."""
    text = (ROOT / name).read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#:]+)\)", text)
    files = re.findall(r"`((?:tests|treeshare|scripts|tasks|docs)/[\w./-]+)`", text)
    missing = [link for link in links if not ((ROOT / name).parent / link).exists()]
    missing += [file for file in files if not (ROOT / file).exists()]
    assert missing == []


def test_lengths():
    assert len((ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8").splitlines()) <= 120
    assert len((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").splitlines()) <= 60
