"""``treeshare verify``."""

import sys
from typing import Annotated

import typer

from treeshare.cli import options
from treeshare.cli.inputs import encode_prompts, load_llm, load_task


def verify(
    task: options.TaskName = "humaneval",
    data: options.DataFile = None,
    limit: options.Limit = 8,
    n: options.NumCompletions = 2,
    temperature: options.Temperature = 0.8,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", min=1, help="Maximum number of tokens of a completion.")
    ] = 32,
    seed: options.Seed = 0,
    model: options.Model = options.DEFAULT_MODEL,
    dtype: options.Dtype = "float32",
    threads: options.Threads = None,
) -> None:
    """Check on this machine that a completion depends neither on sharing nor on the other completions."""
    from treeshare.engine.verify import compare_company, compare_sharing
    from treeshare.evals.prompts import PromptOptions, build_prompts
    from treeshare.sampling import SamplingParams

    chosen, problems = load_task(task, data, limit)
    built = build_prompts(chosen, problems, PromptOptions(data=data))
    params = SamplingParams(n=n, temperature=temperature, seed=seed, max_tokens=max_tokens)
    llm = load_llm(model, dtype=dtype, threads=threads, seed=seed)
    requests = llm.requests(encode_prompts(chosen, built, llm.loaded), params)
    exact = llm.dtype == "float32"
    ok = True
    print("| compared | same tokens | same bits | largest logit difference |")
    print("|---|--:|--:|--:|")
    comparisons = {"tree / every sequence alone": compare_sharing, "all / half of them": compare_company}
    for name, compare in comparisons.items():
        result = compare(llm.loaded, llm.config, requests)
        ok &= result.num_same == result.num_completions or not exact
        print(
            f"| {name} | {result.num_same} of {result.num_completions} "
            f"| {result.num_identical} of {result.num_positions} positions "
            f"| {result.max_difference:.3g} (largest logit {result.max_logit:.3g}) |"
        )
    if not ok:
        print("verify: tokens differ in float32", file=sys.stderr)
        raise typer.Exit(1)
