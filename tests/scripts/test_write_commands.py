"""The page of commands is what the program has."""

from __future__ import annotations

from tests.scripts.loading import ROOT, load_script
from treeshare.cli.app import COMMANDS

write_commands = load_script(ROOT / "scripts", "write_commands")


def test_the_page_is_what_the_program_has():
    page = write_commands.PAGE.read_text(encoding="utf-8")
    assert page == write_commands.written(), "run scripts/write_commands.py"
    assert [line.split()[-1] for line in page.splitlines() if line.startswith("## ")] == [
        command.__name__ for command in COMMANDS
    ]


def test_an_option_shows_its_kind_bounds_and_default():
    lines = write_commands.written().splitlines()
    assert "| `-n`, `--n` | int, 1 to 100000 | `1` | Completions per problem. |" in lines
    assert any("`fixed`, `random`, `nearest`, `nearest-shared`" in line for line in lines)
