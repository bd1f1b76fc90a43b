"""Write ``docs/commands.md``: every command with its arguments and options, as the program has them.

.venv/bin/python scripts/write_commands.py
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

PAGE = Path(__file__).parents[1] / "docs" / "commands.md"

HEAD = """# Commands and options

The `--help` of every command on one page, written by `scripts/write_commands.py`.
[Command line](command_line.md) explains what the commands are for.
"""


def written() -> str:
    """The page."""
    from typer.main import get_command

    from treeshare.cli.app import app

    group: Any = get_command(app)
    return "\n".join([HEAD, *(_command(name, command) for name, command in group.commands.items())])


def _command(name: str, command: Any) -> str:  # noqa: ANN401
    text = inspect.cleandoc(command.help or "").split("\f")[0].replace("\b\n", "")
    shown = [parameter for parameter in command.params if not parameter.hidden] if command.params else []
    arguments = [parameter for parameter in shown if parameter.param_type_name == "argument"]
    options = [
        parameter for parameter in shown if parameter.param_type_name == "option" and parameter.name != "help"
    ]
    lines = [f"## treeshare {name}", "", text, ""]
    if command.epilog:
        examples = [line for line in command.epilog.splitlines() if line.startswith("treeshare ")]
        lines += ["```", *examples, "```", ""]
    if arguments:
        lines += ["| argument | |", "|---|---|", *(_argument(each) for each in arguments), ""]
    if options:
        lines += [
            "| option | value | default | |",
            "|---|---|---|---|",
            *(_option(each) for each in options),
            "",
        ]
    return "\n".join(lines)


def _argument(parameter: Any) -> str:  # noqa: ANN401
    name = (parameter.metavar or parameter.name).strip("{}[]").upper()
    required = "" if parameter.required else " (optional)"
    return f"| `{name}`{required} | {_cell(parameter.help or '')} |"


def _option(parameter: Any) -> str:  # noqa: ANN401
    names = ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))
    default = parameter.default
    shown = (
        "required"
        if parameter.required
        else ""
        if default is None or default is False or default == ()
        else f"`{default}`"
    )
    return f"| {names} | {_value(parameter)} | {shown} | {_cell(parameter.help or '')} |"


def _value(parameter: Any) -> str:  # noqa: ANN401
    """What an option takes: its choices, or its kind with its bounds."""
    kind = parameter.type_descriptor.annotation
    if parameter.is_flag or kind is bool:
        return ""
    if parameter.metavar:
        return f"`{_cell(parameter.metavar)}`"
    if get_origin(kind) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(kind))
    if get_origin(kind) is list:
        kind = get_args(kind)[0]
    name = {"Path": "file", "str": "text"}.get(kind.__name__, kind.__name__)
    low, high = parameter.min, parameter.max
    if low is None and high is None:
        return name
    both = f"{low} to {high}"
    return f"{name}, {both if None not in (low, high) else f'from {low}' if high is None else f'to {high}'}"


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", "\\|").strip()


if __name__ == "__main__":
    PAGE.write_text(written(), encoding="utf-8")
