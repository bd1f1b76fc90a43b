"""``treeshare bench``."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from treeshare.cli import options
from treeshare.cli.inputs import load_llm
from treeshare.cli.outputs import write_json
from treeshare.config import AttentionMode

if TYPE_CHECKING:
    from treeshare.engine.engine import Engine
    from treeshare.engine.workload import Workload

_COLUMNS = (
    "workload",
    "tokens",
    "wall_s",
    "tok_s",
    "prefill_s",
    "decode_s",
    "sampling_s",
    "occupancy",
    "preemptions",
    "median_step_s",
    "longest_step_s",
    "peak_kv_mib",
    "max_rss_mib",
    "load_s",
)


def bench(
    workloads: Annotated[list[Path], typer.Argument(help="Workload files.")],
    model: options.Model = options.DEFAULT_MODEL,
    dtype: options.Dtype = "auto",
    quantization: options.Quantization = None,
    max_model_len: options.MaxModelLen = None,
    sharing: options.Sharing = "tree",
    attention: Annotated[
        AttentionMode,
        typer.Option("--attention", help="off measures the speed without any attention."),
    ] = "on",
    threads: options.Threads = None,
    max_num_seqs: options.MaxNumSeqs = 256,
    kv_budget: options.KvBudget = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Print how much time each part of the run takes.")
    ] = False,
    json_out: options.JsonFile = None,
) -> None:
    """Run workloads of token ids and print their speed; every figure is measured in this run."""
    from treeshare.engine.workload import Workload, run_workload

    read = [Workload.read(path) for path in workloads]
    llm = load_llm(
        model,
        dtype=dtype,
        quantization=quantization,
        max_model_len=max_model_len,
        threads=threads,
        sharing=sharing,
        attention=attention,
        max_num_seqs=max_num_seqs,
        kv_budget_bytes=options.parse_bytes("--kv-budget", kv_budget),
        profile=profile,
    )
    for path, workload in zip(workloads, read, strict=True):
        _check(llm.engine, path, workload)
    figures = []
    print("| " + " | ".join(_COLUMNS) + " |\n|---" + "|--:" * (len(_COLUMNS) - 1) + "|", flush=True)
    for workload in read:
        figures.append(run_workload(llm, workload, use_tqdm=sys.stderr.isatty()))
        print("| " + " | ".join(str(figures[-1][name]) for name in _COLUMNS) + " |", flush=True)
        if json_out is not None:  # after each workload, so that an interrupt loses no result
            write_json(json_out, figures)
    for result in figures if profile else []:
        print(f"\n{result['workload']}, seconds\n" + _profile_table(result["profile_s"], result["wall_s"]))


def _profile_table(phases: dict[str, dict[str, float]], wall_s: float) -> str:
    """Seconds of each part by phase, and its share of the wall time; the longest part first."""
    totals: dict[str, float] = {}
    for seconds in phases.values():
        for part, value in seconds.items():
            totals[part] = totals.get(part, 0.0) + value
    lines = [f"| part | {' | '.join(phases)} | all | share |", "|---" * (len(phases) + 3) + "|"]
    rows = {
        part: [seconds.get(part, 0.0) for seconds in phases.values()]
        for part in sorted(totals, key=lambda part: -totals[part])
    }
    rows["sum"] = [sum(seconds.values()) for seconds in phases.values()]
    for part, cells in rows.items():
        total = sum(cells)
        columns = [f"{cell:.3f}" for cell in (*cells, total)]
        lines.append(f"| {part} | {' | '.join(columns)} | {total / wall_s:.1%} |")
    return "\n".join(lines)


def _check(engine: "Engine", path: Path, workload: "Workload") -> None:
    """Refuse a workload that would fail, before any workload is run."""
    from treeshare.engine.sequence import Request
    from treeshare.errors import BudgetError, ConfigError, DataError, one_line
    from treeshare.sampling import SamplingParams

    try:
        params = SamplingParams(
            temperature=workload.temperature, top_p=workload.top_p, max_tokens=workload.new_tokens
        )
        engine.check(
            [
                Request(
                    prompt_token_ids=problem.prompt_ids,
                    params=params,
                    problem_key=0,
                    seed=0,
                    completion_indices=range(problem.samples),
                )
                for problem in workload.problems
            ]
        )
    except (BudgetError, ConfigError) as error:
        raise DataError(f"workload: {one_line(path)}: {error}") from error
