"""The commands, and what becomes of their errors."""

import sys
from typing import Annotated, Any

import typer

from treeshare.cli.bench import bench
from treeshare.cli.evaluate import evaluate
from treeshare.cli.report import report
from treeshare.cli.sample import sample
from treeshare.cli.tree import tree
from treeshare.cli.verify import verify
from treeshare.errors import TreeshareError

COMMANDS = (
    sample,
    evaluate,
    report,
    tree,
    verify,
    bench,
)
"""In the order of ``treeshare --help``; a command's name is its function's, its help the docstring."""

_UsageError: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")
"""The base of typer's own complaints; typer carries a click of its own and does not export it."""

app = typer.Typer(
    help="Many completions for many problems, as one tree of shared prompt segments.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for _command in COMMANDS:
    app.command()(_command)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib import metadata

        print(f"treeshare {metadata.version('treeshare')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point: a user's mistake is one line on stderr and exit status 2."""
    try:
        status = app(prog_name="treeshare", standalone_mode=False)
    except (typer.Abort, KeyboardInterrupt):
        status = 130
    except _UsageError as error:
        status = _refuse(error.format_message())
    except TreeshareError as error:
        status = _refuse(str(error))
    except BrokenPipeError:
        sys.stderr.close()
        status = 1
    sys.exit(status if isinstance(status, int) else 0)


def _refuse(message: str) -> int:
    if message:
        print("treeshare: " + " ".join(message.split("\n")), file=sys.stderr)
    return 2
