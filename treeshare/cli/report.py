"""``treeshare report``."""

from pathlib import Path
from typing import Annotated

import typer

from treeshare.cli import options
from treeshare.cli.outputs import check_output


def report(
    directory: options.RunFolder,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", callback=check_output, help="Output file; by default report.html in the run directory."
        ),
    ] = None,
) -> None:
    """Write a report about a run as a self-contained HTML page."""
    from treeshare.evals.report import write_report

    path, num_bytes = write_report(directory, out)
    print(f"written: {path} ({num_bytes / 1024:,.0f} KiB)")
