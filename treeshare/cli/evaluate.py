"""``treeshare evaluate``."""

import math
import os
import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from treeshare.cli import options
from treeshare.cli.inputs import load_task, problems_sha256
from treeshare.cli.outputs import write_json
from treeshare.cli.progress import Progress
from treeshare.errors import ConfigError, DataError, one_line


def _check_finite(value: float | None) -> float | None:
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"got {value}, expected a finite number")
    return value


def _parse_ks(text: str | None) -> list[int] | None:
    """The k of ``-k 1,10,100``, in order; None without text."""
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch(r"[1-9][0-9]{0,8}", part) for part in parts):
        raise ConfigError.of(
            "-k", got=text, expected="whole numbers above 0, separated by commas, e.g. 1,10,100"
        )
    return sorted(set(map(int, parts)))


def evaluate(
    directory: options.RunFolder,
    json_out: options.JsonFile = None,
    data: options.DataFile = None,
    own_task: Annotated[
        str | None,
        typer.Option(
            "--task", help="FILE.py:CLASS again, if the run's task is your own; needed to run its code."
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers", min=1, max=256, help="Programs to run at once; by default the number of cores."
        ),
    ] = None,
    timeout_s: Annotated[
        float | None,
        typer.Option(
            "--timeout",
            min=0.1,
            max=3600,
            callback=_check_finite,
            help="Time limit per program, seconds; by default the task's, 3 for most.",
        ),
    ] = None,
    k: Annotated[
        str | None,
        typer.Option(
            "-k",
            "--k",
            metavar="K,K...",
            help="Values of k for pass@k and majority@k, e.g. 1,10,100; by default 1, 2, 4, 5, 8 ...",
        ),
    ] = None,
    recheck: Annotated[
        bool,
        typer.Option(
            "--recheck",
            help="Compute all verdicts again instead of taking them from verdicts.jsonl.",
        ),
    ] = False,
) -> None:
    """Check a run's completions (programs run in the sandbox) and print the task's metrics, e.g. pass@k."""
    ks = _parse_ks(k)
    from treeshare.evals.evaluate import evaluate_completions
    from treeshare.evals.judged import JudgedRun
    from treeshare.evals.results import RESULTS_NAME
    from treeshare.evals.sandbox import Limits, default_sandbox
    from treeshare.evals.summary import RunSummary, calibration_dict
    from treeshare.evals.verdict_cache import VERDICTS_NAME, VerdictCache
    from treeshare.files import write_atomically
    from treeshare.runs import read_run

    manifest, records = read_run(directory)
    source = data or (Path(manifest.data) if manifest.data else None)
    task, problems = load_task(
        own_task or manifest.task,
        source,
        own_code=own_task is not None,
        options=manifest.task_options,
    )
    task_ids = set(manifest.task_ids)
    problems = [problem for problem in problems if problem.task_id in task_ids]
    if data is None and manifest.problems_sha256 not in ("", problems_sha256(problems)):
        raise DataError(
            f"data: {one_line(source or manifest.task)} has changed since the run; give the run's --data"
        )
    if not records:
        raise DataError(f"run directory: {directory} has no completions; run `treeshare sample` first")
    missing = len(manifest.task_ids) * manifest.n - len(records)
    if missing > 0:
        print(f"{missing} of {missing + len(records)} completions are missing", file=sys.stderr)
    sandbox = default_sandbox() if task.needs_sandbox else None
    with (
        VerdictCache(directory / VERDICTS_NAME, recheck=recheck) as cache,
        Progress(len(records), "completions") as progress,
    ):
        evaluation = evaluate_completions(
            task,
            problems,
            [record.model_dump() for record in records],
            sandbox,
            workers=workers or os.cpu_count() or 1,
            limits=Limits(wall_s=task.timeout_s if timeout_s is None else timeout_s),
            cache=cache,
            on_progress=progress.update,
        )
    write_atomically(directory / RESULTS_NAME, evaluation.results_jsonl())
    run = JudgedRun.read(directory)
    summary = RunSummary.of(run, ks)
    print(summary.table())
    undefined = [str(k) for k in ks or () if k not in summary.pass_at_k]
    if undefined:
        print(
            f"-k: {', '.join(undefined)}: left out, as a problem has fewer completions; sample more with -n",
            file=sys.stderr,
        )
    if sandbox is not None:
        print(f"\nchecked in the sandbox {sandbox.name}")
    if cache.num_taken:
        print(
            f"{cache.num_taken} verdicts were taken from {VERDICTS_NAME} in the run directory; "
            "--recheck computes them again"
        )
    if json_out is not None:
        write_json(json_out, summary.to_dict() | calibration_dict(run.checked()))
