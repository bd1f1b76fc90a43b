"""``treeshare bench``."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from treeshare.cli import options
from treeshare.cli.inputs import load_llm
from treeshare.cli.outputs import write_json

if TYPE_CHECKING:
    from treeshare.engine.llm import LLM
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
    sharing: Annotated[str, typer.Option("--sharing", help="tree, one-level or none.")] = "tree",
    attention: Annotated[str, typer.Option("--attention", help="on, or off for the ceiling.")] = "on",
    threads: options.Threads = None,
    max_num_seqs: options.MaxNumSeqs = 256,
    kv_budget: options.KvBudget = None,
    profile: Annotated[bool, typer.Option("--profile", help="Tell where the time goes.")] = False,
    json_out: options.JsonFile = None,
) -> None:
    """Time workloads of token ids; every figure is measured in this run."""
    from treeshare.engine.workload import Workload, run_workload

    read = [Workload.read(path) for path in workloads]
    llm = load_llm(
        model,
        dtype=dtype,
        threads=threads,
        sharing=sharing,
        attention=attention,
        max_num_seqs=max_num_seqs,
        kv_budget_bytes=options.parse_bytes("--kv-budget", kv_budget),
        profile=profile,
    )
    for path, workload in zip(workloads, read, strict=True):
        _check(llm, path, workload)
    figures = []
    print("| " + " | ".join(_COLUMNS) + " |\n|---" + "|--:" * (len(_COLUMNS) - 1) + "|", flush=True)
    for workload in read:
        figures.append(run_workload(llm, workload, use_tqdm=sys.stderr.isatty()))
        print("| " + " | ".join(str(figures[-1][name]) for name in _COLUMNS) + " |", flush=True)
        if json_out is not None:  # after each: what is measured survives an interrupt
            write_json(json_out, figures)
    for one in figures if profile else []:
        print(f"\n{one['workload']}, seconds\n" + _profile_table(one["profile_s"], one["wall_s"]))


def _profile_table(phases: dict[str, dict[str, float]], wall_s: float) -> str:
    """Seconds of each part, by phase, and its share of the wall time; the longest first."""
    sums: dict[str, float] = {}
    for seconds in phases.values():
        for part, value in seconds.items():
            sums[part] = sums.get(part, 0.0) + value
    lines = [f"| part | {' | '.join(phases)} | all | share |", "|---" * (len(phases) + 3) + "|"]
    rows = {
        part: [one.get(part, 0.0) for one in phases.values()] for part in sorted(sums, key=lambda p: -sums[p])
    }
    rows["sum"] = [sum(one.values()) for one in phases.values()]
    for part, cells in rows.items():
        whole = sum(cells)
        columns = [f"{cell:.3f}" for cell in (*cells, whole)]
        lines.append(f"| {part} | {' | '.join(columns)} | {whole / wall_s:.1%} |")
    return "\n".join(lines)


def _check(llm: "LLM", path: Path, workload: "Workload") -> None:
    """Refuse a workload that would fail, before any is run."""
    from treeshare.engine.sequence import Request
    from treeshare.errors import BudgetError, ConfigError, DataError, one_line
    from treeshare.sampling import SamplingParams

    try:
        params = SamplingParams(
            temperature=workload.temperature, top_p=workload.top_p, max_tokens=workload.new_tokens
        )
        llm.engine.check(
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
