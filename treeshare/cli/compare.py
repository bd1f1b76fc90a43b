"""``treeshare compare``."""

from pathlib import Path
from typing import Annotated

import typer

from treeshare.cli import options
from treeshare.cli.outputs import write_json


def compare(
    first: Annotated[Path, typer.Argument(help="An evaluated run directory.")],
    second: Annotated[Path, typer.Argument(help="Another one, of the same problems.")],
    json_out: options.JsonFile = None,
) -> None:
    """Compare two evaluated runs problem by problem: scores of the second minus scores of the first."""
    from treeshare.evals.compare import compare_runs
    from treeshare.evals.judged import JudgedRun

    comparison = compare_runs(JudgedRun.read(first), JudgedRun.read(second))
    print(comparison.table())
    if json_out is not None:
        write_json(json_out, comparison.summary())
