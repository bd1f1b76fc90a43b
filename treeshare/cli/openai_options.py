"""What ``treeshare serve`` and ``treeshare batch`` share."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from treeshare.errors import ConfigError, one_line

ServedNames = Annotated[
    list[str] | None,
    typer.Option("--name", help="Name that requests call the model by, instead of MODEL; repeatable."),
]
ChatTemplate = Annotated[
    Path | None, typer.Option("--chat-template", help="A Jinja file instead of the model's own template.")
]


def read_template(path: Path | None) -> str | None:
    """A chat template's text.

    Raises:
        ConfigError: If the file cannot be read, or is no template.
    """
    if path is None:
        return None
    from jinja2 import Environment, TemplateSyntaxError

    try:
        text = path.read_text(encoding="utf-8")
        Environment().parse(text)
    except (OSError, ValueError, TemplateSyntaxError) as error:
        raise ConfigError(f"--chat-template: cannot read {one_line(path)}: {one_line(error)}") from error
    return text


def require_libraries(*names: str) -> None:
    """Refuse to begin without the libraries of a server.

    Raises:
        ConfigError: If one is missing; with what to install.
    """
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise ConfigError(f"{', '.join(missing)}: not installed; pip install 'treeshare[serve]'")
