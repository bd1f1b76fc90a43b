"""``treeshare verify``."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from treeshare.cli import options
from treeshare.cli.inputs import encode_prompts, load_llm, load_task
from treeshare.cli.progress import Progress

if TYPE_CHECKING:
    from treeshare.engine.verify import Comparison, Verification

_DEFAULT_SHOTS = 2
"""Worked examples where a task has its own data and uses none: enough for the prompts to share a node."""


def verify(
    task: options.TaskName = "humaneval",
    data: options.DataFile = None,
    limit: Annotated[int, typer.Option("--limit", min=2, help="Use only the first N problems.")] = 4,
    n: Annotated[int, typer.Option("-n", "--n", min=2, max=100_000, help="Completions per problem.")] = 2,
    shots: Annotated[
        int | None,
        typer.Option(
            "--shots",
            min=0,
            help="Worked examples in each prompt; by default as many as the task uses, or, where it uses "
            f"none and --data is not given, {_DEFAULT_SHOTS}.",
        ),
    ] = None,
    chat: options.Chat = False,
    chat_template_kwargs: options.ChatTemplateKwargs = None,
    temperature: Annotated[
        float, typer.Option("--temperature", help="0 always takes the most likely token.")
    ] = 0.8,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", min=2, help="Number of tokens of a completion.")
    ] = 16,
    seed: options.Seed = 0,
    model: options.Model = options.DEFAULT_MODEL,
    dtype: options.Dtype = "auto",
    quantization: options.Quantization = None,
    max_model_len: options.MaxModelLen = None,
    lora: options.Lora = None,
    revision: options.Revision = None,
    threads: options.Threads = None,
    fingerprint: Annotated[
        bool,
        typer.Option(
            "--fingerprint",
            help="Instead, print a hash of completions of fixed prompts in int8: the same on every CPU.",
        ),
    ] = False,
) -> None:
    """Check on this machine that a completion's bits do not depend on what else runs, nor on sharing.

    Exit status 1 if they do, or if a fault that the check puts in is not seen.
    """
    if fingerprint:
        from treeshare.engine.fingerprint import fingerprint as fingerprint_of
        from treeshare.models.quantization import INT8

        print(
            fingerprint_of(
                load_llm(
                    model,
                    dtype=dtype,
                    quantization=quantization or INT8,
                    max_model_len=max_model_len,
                    lora=lora,
                    revision=revision,
                    threads=threads,
                )
            )
        )
        return
    from treeshare.engine.verify import Verification
    from treeshare.evals.prompts import PromptOptions, build_prompts
    from treeshare.sampling import SamplingParams

    chosen, problems = load_task(task, data, limit)
    if shots is None and data is None and not chosen.num_shots:
        shots = _DEFAULT_SHOTS
    prompting = PromptOptions(
        num_shots=shots,
        seed=seed,
        chat=chat,
        chat_template_kwargs=options.parse_template_kwargs(chat_template_kwargs),
        data=data,
    )
    built = build_prompts(chosen, problems, prompting)
    params = SamplingParams(n=n, temperature=temperature, seed=seed, max_tokens=max_tokens, ignore_eos=True)
    llm = load_llm(
        model,
        dtype=dtype,
        quantization=quantization,
        max_model_len=max_model_len,
        lora=lora,
        revision=revision,
        threads=threads,
        seed=seed,
    )
    requests = llm.requests(encode_prompts(chosen, built, llm.loaded, prompting), params)
    verification = Verification(llm.loaded, llm.config, requests)
    shared = verification.shared
    print(
        f"{len(requests)} prompts, {len(requests) * n} completions, {llm.dtype}; "
        f"{shared.num_nodes:,} shared {'node' if shared.num_nodes == 1 else 'nodes'} "
        f"with {shared.num_tokens:,} tokens, and {shared.num_prompts:,} prompts below. "
        "Compared with all prompts together:\n",
        flush=True,
    )
    if not _print_table(verification, shared.num_prompts * n):
        raise typer.Exit(1)


def _print_table(verification: "Verification", num_faulty: int) -> bool:
    """Run everything and print a line for each way.

    Args:
        verification: What to run.
        num_faulty: Completions that the control's fault concerns.

    Returns:
        Whether no bit differs, and the control's fault was seen.
    """
    with Progress(verification.num_completions, "completions") as progress:
        found = list(verification.run(progress.update))
    print("| way | completions | tokens differ | log-probabilities differ | same bits | largest difference |")
    print("|---|--:|--:|--:|--:|--:|")
    for way, result in found:
        seen = ""
        if way is verification.control:
            seen = f": detected in {result.num_completions - result.num_same_logprobs} of {num_faulty}"
        print(f"| {way.name}{seen} | {_cells(result)} |")
    *ways, (_, control) = found
    different = [way.name for way, result in ways if not result.is_same]
    if different:
        print(
            f"verify: {len(different)} of {len(ways)} ways give different bits: {', '.join(different)}",
            file=sys.stderr,
        )
    if control.is_same:
        print(
            "verify: the inserted fault was not detected, so this check proves nothing; report it as a bug",
            file=sys.stderr,
        )
    return not different and not control.is_same


def _cells(result: "Comparison") -> str:
    cells = (
        result.num_completions,
        result.num_completions - result.num_same,
        result.num_completions - result.num_same_logprobs,
        f"{result.num_identical} of {result.num_positions} positions",
        f"{result.max_difference:.2g}",
    )
    return " | ".join(map(str, cells))
