"""Options of both ``treeshare serve`` and ``treeshare batch``."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from treeshare.errors import ConfigError, one_line
from treeshare.files import read_text

ServedNames = Annotated[
    list[str] | None,
    typer.Option("--name", help="Model name in requests, instead of MODEL; repeatable."),
]
ChatTemplate = Annotated[
    Path | None,
    typer.Option("--chat-template", help="Jinja file with a chat template, instead of the model's own."),
]


_MAX_TEMPLATE_BYTES = 16 << 20


def read_template(path: Path | None) -> str | None:
    """Read a chat template; None without a path.

    Raises:
        DataError: If the file cannot be read.
        ConfigError: If it is not a Jinja template.
    """
    if path is None:
        return None
    from jinja2 import Environment, TemplateSyntaxError

    text = read_text(path, "--chat-template", max_bytes=_MAX_TEMPLATE_BYTES)
    try:
        Environment().parse(text)
    except (RecursionError, TemplateSyntaxError) as error:
        raise ConfigError(
            f"--chat-template: {one_line(path)} is not a Jinja template: {one_line(error)}"
        ) from error
    return text


def require_libraries(*names: str) -> None:
    """Check that the libraries of the server are installed.

    Raises:
        ConfigError: If a library is missing; the message says how to install it.
    """
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise ConfigError(f"{', '.join(missing)}: not installed; pip install 'treeshare[serve]'")
