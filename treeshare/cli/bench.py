"""``treeshare bench``."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from treeshare.cli import options
from treeshare.cli.inputs import load_llm

_COLUMNS = (
    "workload",
    "tokens",
    "wall_s",
    "tok_s",
    "prefill_s",
    "decode_s",
    "sampling_s",
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
    json_out: Annotated[Path | None, typer.Option("--json", help="Write the figures there.")] = None,
) -> None:
    """Time workloads of token ids; every figure is measured in this run."""
    from treeshare.engine.workload import Workload, run_workload, write_figures

    read = [Workload.read(path) for path in workloads]
    llm = load_llm(
        model, dtype=dtype, threads=threads, sharing=sharing, attention=attention, max_num_seqs=max_num_seqs
    )
    figures = []
    print("| " + " | ".join(_COLUMNS) + " |\n|---" + "|--:" * (len(_COLUMNS) - 1) + "|", flush=True)
    for workload in read:
        figures.append(run_workload(llm, workload, use_tqdm=sys.stderr.isatty()))
        print("| " + " | ".join(str(figures[-1][name]) for name in _COLUMNS) + " |", flush=True)
    if json_out is not None:
        write_figures(json_out, figures)
