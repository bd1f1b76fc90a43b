"""``treeshare batch``."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from treeshare.cli import openai_options, options
from treeshare.cli.inputs import load_llm
from treeshare.cli.outputs import check_output
from treeshare.cli.progress import SamplingProgress
from treeshare.errors import ConfigError, one_line


def batch(
    requests: Annotated[Path, typer.Argument(help="JSON lines in OpenAI's batch format.")],
    out: Annotated[
        Path,
        typer.Argument(callback=check_output, help="Output file; requests answered in it are not run again."),
    ],
    model: options.Model = options.DEFAULT_MODEL,
    name: openai_options.ServedNames = None,
    chat_template: openai_options.ChatTemplate = None,
    chat_template_kwargs: openai_options.ChatTemplateKwargs = None,
    reasoning_parser: options.ReasoningParser = "auto",
    seed: options.Seed = 0,
    dtype: options.Dtype = "auto",
    quantization: options.Quantization = None,
    max_model_len: options.MaxModelLen = None,
    lora: options.Lora = None,
    revision: options.Revision = None,
    generation_config: options.GenerationConfig = "auto",
    threads: options.Threads = None,
    max_num_seqs: options.MaxNumSeqs = 256,
    kv_budget: options.KvBudget = None,
) -> None:
    """Answer a file of OpenAI batch requests; prefixes that requests share are computed once.

    The same command resumes an interrupted one. The answer to an invalid line is an error.
    """
    from treeshare.integrations.openai.batch import BatchRun, open_output, read_batch

    if out.exists() and requests.exists() and out.samefile(requests):
        raise ConfigError(f"{one_line(out)}: it is the input; name another output")
    kv_budget_bytes = options.parse_bytes("--kv-budget", kv_budget)
    chat = openai_options.chat_options(chat_template, chat_template_kwargs)
    llm = load_llm(
        model,
        reasoning_parser=reasoning_parser,
        dtype=dtype,
        quantization=quantization,
        max_model_len=max_model_len,
        lora=lora,
        revision=revision,
        generation_config=generation_config,
        threads=threads,
        max_num_seqs=max_num_seqs,
        kv_budget_bytes=kv_budget_bytes,
    )
    lines = read_batch(requests, llm, names=tuple(name or [model]), seed=seed, chat=chat)
    output = open_output(out)
    try:
        if output.num_torn_bytes:
            print(f"removed an incomplete last line of {output.num_torn_bytes} bytes", file=sys.stderr)
        run = BatchRun(llm, lines, output)
        if run.num_held:
            print(f"resuming: {run.num_held:,} answers already exist", file=sys.stderr)
        try:
            with SamplingProgress(llm.engine, run.requests) as progress:
                run.run(progress.update)
        except KeyboardInterrupt:
            print("interrupted: finished answers are kept; run the same command to resume", file=sys.stderr)
            raise
    finally:
        output.close()
    num_errors = sum(line.refusal is not None for line in lines)
    print(f"{len(lines):,} answers, {num_errors:,} of them errors, in {one_line(out)}")
