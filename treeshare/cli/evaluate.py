"""``treeshare evaluate``."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from treeshare.cli import options
from treeshare.cli.inputs import load_task
from treeshare.cli.progress import progress_bar
from treeshare.errors import DataError


def evaluate(
    directory: options.RunFolder,
    json_out: Annotated[Path | None, typer.Option("--json", help="Write the summary there.")] = None,
    data: options.DataFile = None,
    workers: Annotated[int | None, typer.Option("--workers", min=1, help="Programs run at once.")] = None,
    timeout_s: Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds per program.")] = 3.0,
) -> None:
    """Run a run's completions in the sandbox and print pass@k."""
    from treeshare.evals.evaluate import evaluate_completions
    from treeshare.evals.sandbox import Limits, default_sandbox
    from treeshare.runs import read_run
    from treeshare.runs.files import write_atomically

    manifest, records = read_run(directory)
    source = data or (Path(manifest.data) if manifest.data else None)
    task, problems = load_task(manifest.task, source)
    wanted = set(manifest.task_ids)
    problems = [problem for problem in problems if problem.task_id in wanted]
    if not records:
        raise DataError(f"run directory: {directory} holds no completion; run `treeshare sample` first")
    missing = len(manifest.task_ids) * manifest.n - len(records)
    if missing > 0:
        print(f"{missing} of {missing + len(records)} completions are still to be made", file=sys.stderr)
    with progress_bar(len(records), "Checking") as bar:
        evaluation = evaluate_completions(
            task,
            problems,
            [record.model_dump() for record in records],
            default_sandbox(),
            workers=workers or os.cpu_count() or 1,
            limits=Limits(wall_s=timeout_s),
            on_progress=bar.update,
        )
    print(evaluation.table())
    write_atomically(directory / "results.jsonl", evaluation.results_jsonl())
    if json_out is not None:
        write_atomically(json_out, json.dumps(evaluation.summary(), indent=2).encode() + b"\n")
