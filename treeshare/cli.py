"""The command line: ``treeshare sample | evaluate | tree | verify | bench``.

Results go to stdout, progress to stderr. Exit status 0 when it worked, 1 when ``verify`` found a difference,
2 for a user's mistake, named in one line on stderr, 130 after Ctrl-C.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from treeshare.errors import ConfigError, DataError, TreeshareError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from treeshare.engine.llm import LLM
    from treeshare.engine.sequence import Completion, Request
    from treeshare.evals.problem import Problem, Task
    from treeshare.sampling import SamplingParams
    from treeshare.tree import PromptTree

DEFAULT_MODEL = "smollm2-135m"

_UsageError: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")
"""The base of typer's own complaints; typer carries a click of its own and does not export it."""

app = typer.Typer(
    help="Many completions for many problems, as one tree of shared prompt segments.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

TaskName = Annotated[str, typer.Option("--task", help="Task, e.g. humaneval.")]
DataFile = Annotated[Path | None, typer.Option("--data", help="The task's data from a local file.")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Only the first N problems.")]
NumCompletions = Annotated[int, typer.Option("-n", min=1, help="Completions per problem.")]
Model = Annotated[str, typer.Option("--model", help="Embedded name, folder, .gguf file or hub id.")]
Dtype = Annotated[str, typer.Option("--dtype", help="auto, bfloat16 or float32.")]
Threads = Annotated[int | None, typer.Option("--threads", min=1, help="Torch threads.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Run seed.")]
Temperature = Annotated[float, typer.Option("--temperature", help="0 takes the likeliest token.")]
TopP = Annotated[float, typer.Option("--top-p", help="Keep the likeliest tokens of this mass.")]
TopK = Annotated[int, typer.Option("--top-k", help="Keep this many likeliest tokens; 0 keeps all.")]
Stop = Annotated[list[str] | None, typer.Option("--stop", help="Instead of the task's; repeatable.")]
MaxTokens = Annotated[int | None, typer.Option("--max-tokens", min=1, help="Instead of the task's.")]
MaxNumSeqs = Annotated[int, typer.Option("--max-num-seqs", min=1, help="Most completions decoded at once.")]


@app.command()
def sample(
    task: TaskName,
    out: Annotated[Path, typer.Option("--out", help="Run directory; an existing run is resumed.")],
    n: NumCompletions = 1,
    data: DataFile = None,
    limit: Limit = None,
    temperature: Temperature = 0.8,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    max_tokens: MaxTokens = None,
    stop: Stop = None,
    seed: Seed = 0,
    model: Model = DEFAULT_MODEL,
    dtype: Dtype = "auto",
    threads: Threads = None,
    max_num_seqs: MaxNumSeqs = 256,
) -> None:
    """Sample completions of a task's problems into a run directory.

    The same command resumes an interrupted run; a larger -n extends a finished one.
    """
    from treeshare.runs import RunDirectory, make_manifest, make_requests, sample_into

    chosen, problems = _load_task(task, data, limit)
    params = _params(
        n=n,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        seed=seed,
        max_tokens=max_tokens or chosen.max_tokens,
        stop=chosen.stop if stop is None else stop,
    )
    llm = _load_llm(model, dtype=dtype, threads=threads, seed=seed, max_num_seqs=max_num_seqs)
    task_ids = [problem.task_id for problem in problems]
    prompts = [llm.encode(problem.prompt) for problem in problems]
    manifest = make_manifest(
        llm,
        task=task,
        data=str(data.resolve()) if data else "",
        task_ids=task_ids,
        prompts=prompts,
        params=params,
    )
    with RunDirectory(out, manifest) as directory:
        requests = make_requests(task_ids, prompts, params, directory)
        _print_tree(llm, prompts, directory.manifest.n)
        _say_what_is_held(directory)
        with _Progress(llm, requests) as progress:
            try:
                sample_into(directory, llm, task_ids, requests, progress.update)
            except KeyboardInterrupt:
                progress.interrupted = True
                raise
    _print_summary(llm, out)


@app.command()
def evaluate(
    directory: Annotated[Path, typer.Argument(help="Run directory of `treeshare sample`.")],
    json_out: Annotated[Path | None, typer.Option("--json", help="Write the summary there.")] = None,
    data: DataFile = None,
    workers: Annotated[int | None, typer.Option("--workers", min=1, help="Programs run at once.")] = None,
    timeout_s: Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds per program.")] = 3.0,
) -> None:
    """Run a run's completions in the sandbox and print pass@k."""
    from treeshare.evals.evaluate import evaluate_completions
    from treeshare.evals.sandbox import Limits, default_sandbox
    from treeshare.runs import read_run
    from treeshare.runs.manifest import write_atomically

    manifest, records = read_run(directory)
    source = data or (Path(manifest.data) if manifest.data else None)
    task, problems = _load_task(manifest.task, source, None)
    wanted = set(manifest.task_ids)
    problems = [problem for problem in problems if problem.task_id in wanted]
    if not records:
        raise DataError(f"run directory: {directory} holds no completion; run `treeshare sample` first")
    missing = len(manifest.task_ids) * manifest.n - len(records)
    if missing > 0:
        print(f"{missing} of {missing + len(records)} completions are still to be made", file=sys.stderr)
    with _bar(total=len(records), description="Checking") as bar:
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


@app.command()
def tree(
    workload: Annotated[Path | None, typer.Argument(help="Workload file; or give --task.")] = None,
    task: Annotated[str | None, typer.Option("--task", help="Task, e.g. humaneval.")] = None,
    data: DataFile = None,
    limit: Limit = None,
    n: NumCompletions = 1,
    model: Model = DEFAULT_MODEL,
) -> None:
    """Draw the tree of a task's or a workload's prompts; loads no weights."""
    from treeshare.engine.workload import Workload
    from treeshare.models import describe_model
    from treeshare.tree import PromptTree, render_tree

    description = describe_model(model)
    counts: int | list[int] = n
    if (workload is None) == (task is None):
        raise ConfigError("tree: give either a workload file or --task")
    if workload is not None:
        read = Workload.read(workload)
        prompts = [problem.prompt_ids for problem in read.problems]
        counts = [problem.samples for problem in read.problems]
    else:
        prompts = [description.encode(problem.prompt) for problem in _load_task(task or "", data, limit)[1]]
    found = PromptTree.from_prompts(prompts)
    print(
        render_tree(
            found, counts, decode=description.decode, bytes_per_token=description.geometry.bytes_per_token
        )
    )


@app.command()
def verify(
    task: TaskName = "humaneval",
    data: DataFile = None,
    limit: Limit = 8,
    n: NumCompletions = 2,
    temperature: Temperature = 0.8,
    max_tokens: MaxTokens = 32,
    seed: Seed = 0,
    model: Model = DEFAULT_MODEL,
    dtype: Dtype = "float32",
    threads: Threads = None,
) -> None:
    """Check on your own machine that completions depend neither on sharing nor on their company."""
    from treeshare.engine.verify import compare_company, compare_sharing

    problems = _load_task(task, data, limit)[1]
    params = _params(n=n, temperature=temperature, seed=seed, max_tokens=max_tokens or 32)
    llm = _load_llm(model, dtype=dtype, threads=threads, seed=seed)
    requests = llm.requests([llm.encode(problem.prompt) for problem in problems], params)
    exact = llm.loaded.geometry.dtype.itemsize == 4
    ok = True
    print("| compared | same tokens | same bits | largest logit difference |")
    print("|---|--:|--:|--:|")
    comparisons = {"tree / every sequence alone": compare_sharing, "all / half of them": compare_company}
    for name, compare in comparisons.items():
        result = compare(llm.loaded, llm.engine.config, requests)
        ok &= result.num_same == result.num_completions or not exact
        print(
            f"| {name} | {result.num_same} of {result.num_completions} "
            f"| {result.num_identical} of {result.num_positions} positions "
            f"| {result.max_difference:.3g} (largest logit {result.max_logit:.3g}) |"
        )
    if not ok:
        print("verify: tokens differ in float32", file=sys.stderr)
        raise typer.Exit(1)


@app.command()
def bench(
    workloads: Annotated[list[Path], typer.Argument(help="Workload files.")],
    model: Model = DEFAULT_MODEL,
    dtype: Dtype = "auto",
    sharing: Annotated[str, typer.Option("--sharing", help="tree, one-level or none.")] = "tree",
    attention: Annotated[str, typer.Option("--attention", help="on, or off for the ceiling.")] = "on",
    threads: Threads = None,
    max_num_seqs: MaxNumSeqs = 256,
    json_out: Annotated[Path | None, typer.Option("--json", help="Write the figures there.")] = None,
) -> None:
    """Time workloads of token ids; every figure is measured in this run."""
    from treeshare.engine.workload import Workload, run_workload, write_figures

    read = [Workload.read(path) for path in workloads]
    llm = _load_llm(
        model, dtype=dtype, threads=threads, sharing=sharing, attention=attention, max_num_seqs=max_num_seqs
    )
    figures = []
    columns = ["workload", "tokens", "wall_s", "tok_s", "prefill_s", "decode_s", "sampling_s"]
    columns += ["max_rss_mib", "load_s"]
    print("| " + " | ".join(columns) + " |\n|---" + "|--:" * (len(columns) - 1) + "|", flush=True)
    for workload in read:
        figures.append(run_workload(llm, workload, use_tqdm=sys.stderr.isatty()))
        print("| " + " | ".join(str(figures[-1][name]) for name in columns) + " |", flush=True)
    if json_out is not None:
        write_figures(json_out, figures)


def _load_task(name: str, data: Path | None, limit: int | None) -> tuple[Task, list[Problem]]:
    from tasks.registry import get_task

    task = get_task(name)
    return task, task.load(data)[:limit]


def _params(**values: Any) -> SamplingParams:  # noqa: ANN401
    from treeshare.sampling import SamplingParams

    return SamplingParams(**values)


def _load_llm(model: str, **options: Any) -> LLM:  # noqa: ANN401
    """Load a model, quietly: the libraries' own progress bars would hide ours."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    from treeshare.engine.llm import LLM

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    hub_logging.set_verbosity_error()
    llm = LLM(model, **options)
    dtype = str(llm.loaded.geometry.dtype).removeprefix("torch.")
    print(
        f"{model}: {dtype}, loaded in {llm.loaded.load_s:.1f} s, "
        f"KV budget {llm.engine.kv_budget_bytes / 2**20:.0f} MiB",
        file=sys.stderr,
    )
    return llm


def _print_tree(llm: LLM, prompts: Sequence[Sequence[int]], n: int) -> None:
    from treeshare.tree import PromptTree, render_tree

    found: PromptTree = PromptTree.from_prompts(prompts)
    decode = llm.loaded.decoder(skip_special_tokens=False)
    print(render_tree(found, n, decode=decode, bytes_per_token=llm.loaded.geometry.bytes_per_token))


def _say_what_is_held(directory: Any) -> None:  # noqa: ANN401
    if directory.num_torn_bytes:
        print(f"cut away a torn last line of {directory.num_torn_bytes} bytes", file=sys.stderr)
    if directory.finished:
        print(f"resuming: {len(directory.finished)} completions are there already", file=sys.stderr)


def _print_summary(llm: LLM, out: Path) -> None:
    stats = llm.stats
    print(
        f"{stats.num_finished} completions, {stats.num_tokens} tokens in {stats.wall_s:.1f} s "
        f"({stats.tokens_per_s:.0f} tokens/s): "
        f"prefill {stats.prefill_s:.1f} s, decode {stats.decode_s:.1f} s, "
        f"sampling {stats.sampling_s:.1f} s, peak KV {stats.peak_kv_bytes / 2**20:.0f} MiB\n"
        f"written: {out / 'manifest.json'}, {out / 'samples.jsonl'}\n"
        f"next: treeshare evaluate {out}"
    )


def _bar(total: int, description: str) -> Any:  # noqa: ANN401
    from tqdm import tqdm

    return tqdm(total=total, desc=description, unit="", dynamic_ncols=True, file=sys.stderr)


class _Progress:
    """A bar of completions with tokens per second; says how to go on after an interrupt."""

    def __init__(self, llm: LLM, requests: Sequence[Request]) -> None:
        self._llm = llm
        self._bar = _bar(sum(len(request.completion_indices) for request in requests), "Completions")
        self.interrupted = False

    def update(self, completion: Completion) -> None:
        """Count one completion."""
        self._bar.set_postfix_str(f"{self._llm.stats.tokens_per_s:.0f} tokens/s", refresh=False)
        self._bar.update()

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        if self.interrupted:
            print("interrupted: what is finished is kept; the same command goes on", file=sys.stderr)


def main() -> None:
    """Entry point: a user's mistake is one line on stderr and exit status 2."""
    try:
        status = app(standalone_mode=False)
    except (typer.Abort, KeyboardInterrupt):
        status = 130
    except _UsageError as error:
        status = _refuse(error.format_message())
    except TreeshareError as error:
        status = _refuse(str(error))
    except BrokenPipeError:
        sys.stderr.close()
        status = 1
    sys.exit(status if isinstance(status, int) else 0)


def _refuse(message: str) -> int:
    if message:
        print("treeshare: " + " ".join(message.split("\n")), file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
