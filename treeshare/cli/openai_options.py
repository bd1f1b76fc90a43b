"""Options of both ``treeshare serve`` and ``treeshare batch``."""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from treeshare.cli.options import parse_template_kwargs
from treeshare.errors import ConfigError, one_line
from treeshare.installation import how_to_add

if TYPE_CHECKING:
    from treeshare.engine.chat import ChatOptions

ServedNames = Annotated[
    list[str] | None,
    typer.Option("--name", help="Model name in requests, instead of MODEL; repeatable."),
]
ChatTemplate = Annotated[
    Path | None,
    typer.Option("--chat-template", help="Jinja file with a chat template, instead of the model's own."),
]

ChatTemplateKwargs = Annotated[
    str | None,
    typer.Option(
        "--chat-template-kwargs",
        "--default-chat-template-kwargs",
        metavar="JSON",
        help="Default variables to pass to the chat template, e.g. '{\"enable_thinking\": false}'.",
    ),
]


def chat_options(template: Path | None, template_kwargs: str | None) -> "ChatOptions":
    """The server's own chat options.

    Raises:
        ConfigError: As ``read_template``, or if the arguments are no JSON object or hold a reserved name.
    """
    from treeshare.engine.chat import ChatOptions

    given = parse_template_kwargs(template_kwargs)
    return ChatOptions(chat_template=read_template(template), chat_template_kwargs=given)


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

    from treeshare.files import read_text

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
        raise ConfigError(f"{', '.join(missing)}: not installed; {how_to_add('serve')}")
