"""The list of commands, and the handling of their errors."""

import copy
import errno
import io
import os
import signal
import sys
from typing import Annotated, Any

import typer

from treeshare.cli.batch import batch
from treeshare.cli.bench import bench
from treeshare.cli.compare import compare
from treeshare.cli.doctor import doctor
from treeshare.cli.evaluate import evaluate
from treeshare.cli.examples import epilog
from treeshare.cli.export import export
from treeshare.cli.logs import write_logs
from treeshare.cli.models import models
from treeshare.cli.report import report
from treeshare.cli.sample import sample
from treeshare.cli.serve import serve
from treeshare.cli.tasks import tasks
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
    serve,
    batch,
    models,
    tasks,
    doctor,
)
"""In the order of ``treeshare --help``; a function's name is the command's name, its docstring the help."""

_UsageError: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")
"""The base class of typer's own errors; it belongs to a copy of click in typer that is not exported."""

app = typer.Typer(
    help="Sample many completions for many problems; prefixes that prompts share are computed once.",
    epilog=epilog(""),
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _command in COMMANDS:
    app.command(epilog=epilog(_command.__name__))(_command)


_COMPLETION = "_TREESHARE_COMPLETE"
"""The variable by which the scripts of ``--install-completion`` ask; its name is click's."""


def _print_version(wanted: bool) -> None:
    if wanted:
        from treeshare.installation import version

        print(f"treeshare {version()}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
    verbose: Annotated[
        bool,
        typer.Option(
            "--verbose",
            callback=write_logs,
            help="Write on stderr what the engine logs; also after a command.",
        ),
    ] = False,
) -> None:
    pass


def command_line() -> Any:  # noqa: ANN401
    """The program as click has it: what tests and the reference walk through."""
    group = typer.main.get_command(app)
    (verbose,) = (option for option in group.params if option.name == "verbose")
    for command in group.commands.values():  # type: ignore[attr-defined]  # it is a group
        option = copy.copy(verbose)
        option.expose_value, option.help = False, "Write on stderr what the engine logs."  # type: ignore[attr-defined]
        command.params.append(option)
    return group


def main() -> None:
    """Entry point; a user's mistake gives a line on stderr and exit status 2."""
    _repair_standard_streams()
    try:
        status = _run(sys.argv[1:])
        sys.stdout.flush()
    except (typer.Abort, KeyboardInterrupt):
        status = 130
    except _UsageError as error:
        status = _refuse(error.format_message().replace(": Value error, ", ": "))
    except TreeshareError as error:
        status = _refuse(str(error))
    except OSError as error:
        status = _end_after_output_error(error)
    sys.exit(status)


def _run(arguments: list[str]) -> int:
    """Run a command without typer's ``main``, which would handle broken pipes and interrupts itself."""
    command = command_line()
    if _COMPLETION in os.environ:  # a shell asks what may follow, or for its own script
        command.main(arguments, "treeshare", complete_var=_COMPLETION)
    try:
        with command.make_context("treeshare", _with_ray_address(arguments)) as context:
            command.invoke(context)
    except typer.Exit as request:
        return request.exit_code
    return 0


def _with_ray_address(arguments: list[str]) -> list[str]:
    """``--ray`` without an address becomes ``--ray=local``; typer has no options with an optional value."""
    return [
        "--ray=local" if argument == "--ray" and following.startswith("-") else argument
        for argument, following in zip(arguments, [*arguments[1:], "-"], strict=False)
    ]


def _refuse(message: str) -> int:
    if message:  # it is empty if typer has already printed the help
        print(f"treeshare: {one_line(message, 2000)}", file=sys.stderr)
    return 2


def _end_after_output_error(error: OSError) -> int:
    """Exit status after an error that no command handles, such as a closed pipe or a full disk on stdout."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)  # so that flushing buffered output at exit does not fail again
    if error.errno == errno.EPIPE:
        os.dup2(null, 2)
        return 128 + signal.SIGPIPE
    place = "cannot write output" if error.filename is None else str(error.filename)
    return _refuse(f"{place}: {error.strerror or error}")


def _repair_standard_streams() -> None:
    """Reopen closed standard streams, make them blocking, and escape characters that they cannot encode."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # It gets the lowest free descriptor, which is this one; else a run's file would get it.
            os.open(os.devnull, os.O_RDWR)
    for number in (1, 2):
        os.set_blocking(number, True)  # so that writing waits while a pipe is full
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
