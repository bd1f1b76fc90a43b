"""The commands, and what becomes of their errors."""

import errno
import io
import os
import signal
import sys
from typing import Annotated, Any

import typer

from treeshare.cli.bench import bench
from treeshare.cli.compare import compare
from treeshare.cli.doctor import doctor
from treeshare.cli.evaluate import evaluate
from treeshare.cli.export import export
from treeshare.cli.report import report
from treeshare.cli.sample import sample
from treeshare.cli.tree import tree
from treeshare.cli.verify import verify
from treeshare.errors import TreeshareError, one_line

COMMANDS = (
    sample,
    evaluate,
    report,
    compare,
    export,
    tree,
    verify,
    bench,
    doctor,
)
"""In the order of ``treeshare --help``; a command's name is its function's, its help the docstring."""

_UsageError: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")
"""The base of typer's own complaints; typer carries a click of its own and does not export it."""

app = typer.Typer(
    help="Many completions for many problems, as one tree of shared prompt segments.",
    no_args_is_help=True,
    add_completion=False,
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
    _mend_standard_streams()
    try:
        status = _run(sys.argv[1:])
        sys.stdout.flush()
    except (typer.Abort, KeyboardInterrupt):
        status = 130
    except _UsageError as error:
        status = _refuse(error.format_message())
    except TreeshareError as error:
        status = _refuse(str(error))
    except OSError as error:
        status = _give_up(error)
    sys.exit(status)


def _run(arguments: list[str]) -> int:
    """Run a command; not by typer's own ``main``, which would hide broken pipes and interrupts from ours."""
    command = typer.main.get_command(app)
    try:
        with command.make_context("treeshare", _with_ray_address(arguments)) as context:
            command.invoke(context)
    except typer.Exit as wish:
        return wish.exit_code
    return 0


def _with_ray_address(arguments: list[str]) -> list[str]:
    """``--ray`` may stand alone, which typer has no words for: then it means a cluster of our own."""
    return [
        "--ray=local" if one == "--ray" and after.startswith("-") else one
        for one, after in zip(arguments, [*arguments[1:], "-"], strict=False)
    ]


def _refuse(message: str) -> int:
    if message:  # none where typer has printed the help already
        print(f"treeshare: {one_line(message, 2000)}", file=sys.stderr)
    return 2


def _give_up(error: OSError) -> int:
    """End for what no command has explained: a reader that has gone, a disk full of what we print."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)  # what is still buffered goes nowhere, and the interpreter's end finds no fault
    if error.errno == errno.EPIPE:
        os.dup2(nothing, 2)
        return 128 + signal.SIGPIPE
    place = "cannot write output" if error.filename is None else str(error.filename)
    return _refuse(f"{place}: {error.strerror or error}")


def _mend_standard_streams() -> None:
    """Replace what the caller closed, lest a run's file gets its number; show what the terminal cannot."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, this one
    for number in (1, 2):
        os.set_blocking(number, True)  # a full pipe is waited for
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
