"""A sampling run: prompts go to the engine, and each finished completion goes to the journal at once."""

from __future__ import annotations

import datetime
import os
from collections import Counter
from typing import TYPE_CHECKING, Any, Protocol

from treeshare.config import ARITHMETIC
from treeshare.engine.sequence import Request
from treeshare.errors import DataError, one_line
from treeshare.native import PORTABLE, kernel_level, level_code
from treeshare.runs.index_order import IndexOrder
from treeshare.runs.manifest import Manifest, current_versions, prompts_sha256
from treeshare.runs.record import ENDED_KEY, Record
from treeshare.runs.stats_log import STATS_NAME, StatsLog
from treeshare.runs.tree_file import TREE_NAME, TreeFile
from treeshare.sampling import problem_key

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping, Sequence

    from treeshare.engine.engine import Engine
    from treeshare.engine.llm import LLM
    from treeshare.engine.sequence import Completion
    from treeshare.engine.stats import EngineStats
    from treeshare.runs.directory import RunDirectory
    from treeshare.sampling import SamplingParams


class CompletionSource(Protocol):
    """What generates completions: an ``Engine``, or several on other processes."""

    @property
    def stats(self) -> EngineStats:
        """Counters since ``run`` was called."""

    def run(self, requests: Sequence[Request]) -> Generator[Completion, None, None]:
        """Generate; yields each completion as it finishes.

        Args:
            requests: What to generate.
        """

    def cancel(self, index: int) -> int:
        """Cancel the remaining completions of a request; returns their number."""


def make_manifest(
    llm: LLM,
    *,
    task: str,
    data: str,
    task_ids: Sequence[str],
    prompts: Sequence[Sequence[int]],
    params: SamplingParams,
    prompting: Mapping[str, bool | int | str] | None = None,
    task_options: Mapping[str, str] | None = None,
    problems_sha256: str = "",
    workers: str = "",
) -> Manifest:
    """The manifest of a run of ``params.n`` completions for each prompt; see ``Manifest`` for the arguments.

    Raises:
        DataError: If two problems have the same task id, or a prompt is empty or too long for the model.
    """
    repeated = next((task_id for task_id, count in Counter(task_ids).items() if count > 1), None)
    if repeated is not None:
        raise DataError(f"{task}: two problems have the task id {one_line(repeated)}, expected unique ids")
    for task_id, ids in zip(task_ids, prompts, strict=True):
        if not 0 < len(ids) < llm.max_model_len:
            raise DataError(
                f"{task}: the prompt of {one_line(task_id)} has {len(ids)} tokens, expected at least 1 and "
                f"fewer than the model's maximum of {llm.max_model_len}"
            )
    sampling = params.to_dict()
    n, seed = sampling.pop("n"), sampling.pop("seed")
    return Manifest(
        task=task,
        task_options=dict(task_options or {}),
        data=data,
        problems_sha256=problems_sha256,
        prompting=dict(prompting or {}),
        task_ids=list(task_ids),
        prompts_sha256=prompts_sha256(prompts),
        model=llm.model_id,
        model_sha256=llm.loaded.fingerprint(),
        dtype=llm.dtype,
        quantization=llm.loaded.quantization,
        max_model_len=llm.loaded.length_limit,
        sharing=llm.config.sharing,
        device=llm.loaded.device.type,
        arithmetic=ARITHMETIC,
        sampling=sampling,
        n=n,
        seed=llm.seed if seed is None else seed,
        versions=current_versions() | computation(llm.engine),
        workers=workers,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def computation(engine: Engine) -> dict[str, str]:
    """What may change roundings besides versions: kernels, threads; and whether what else runs may."""
    import torch

    level = engine.loaded.level or kernel_level()
    return {
        "attention": engine.backend_name,
        "kernels": PORTABLE if level == PORTABLE else level_code(level),
        "layers": "fused" if engine.loaded.fused else "unfused",
        "company": engine.runner.company_reason or "changes no bit",
        "threads": str(torch.get_num_threads()),
    }


def make_requests(
    task_ids: Sequence[str], prompts: Sequence[Sequence[int]], params: SamplingParams, directory: RunDirectory
) -> list[Request]:
    """Requests for a run's missing completions.

    A finished problem gets a request without completions: the places of requests are those of the problems.
    """
    return [
        Request(
            prompt_token_ids=ids,
            params=params,
            problem_key=problem_key(task_id),
            seed=directory.manifest.seed,
            completion_indices=directory.remaining(task_id),
        )
        for task_id, ids in zip(task_ids, prompts, strict=True)
    ]


def sample_into(
    directory: RunDirectory,
    llm: LLM,
    task_ids: Sequence[str],
    requests: Sequence[Request],
    on_completion: Callable[[Completion], None] | None = None,
    *,
    source: CompletionSource | None = None,
    text_of: Callable[[str, str], str] = lambda _, text: text,
    ends_problem: Callable[[Record], str | None] | None = None,
) -> None:
    """Generate a run's missing completions and append each to the journal as it finishes.

    Whatever ends this early, even Ctrl-C, the same command resumes the run. Next to the journal this writes
    what a report shows: the prompt tree, once, and the counters over time.

    Args:
        directory: The run.
        llm: The model.
        task_ids: Task id of each request.
        requests: See ``make_requests``.
        on_completion: Called with each completion that was written.
        source: Generates in place of ``llm.engine``.
        text_of: From task id and generated text to the record's completion. If they differ, the record keeps
            the generated text as ``reply``.
        ends_problem: Called with each record, those of a problem by ascending index: a record is written when
            those before it are, so that what is written does not depend on which completion was faster. If
            it returns a reason, the problem's other completions are cancelled, or dropped if they were
            faster, also in a resumed run; the record keeps the reason as ``ended_problem``.
    """
    if not os.path.lexists(directory.path / TREE_NAME):
        prompts = [request.prompt_token_ids for request in requests]
        decode = llm.decoder(skip_special_tokens=False)
        TreeFile.of_prompts(prompts, decode).write(directory.path / TREE_NAME)
    engine = source or llm.engine
    order = None if ends_problem is None else IndexOrder(requests)
    completions = engine.run(requests)
    try:
        with StatsLog(directory.path / STATS_NAME, lambda: engine.stats):
            for finished in completions:
                for completion in [finished] if order is None else order.take(finished):
                    record = _record(task_ids[completion.request_index], completion, text_of)
                    reason = ends_problem(record) if ends_problem else None
                    if reason and order:
                        record = record.model_copy(update={ENDED_KEY: reason})
                        order.end(completion.request_index)
                        engine.cancel(completion.request_index)
                    directory.append(record)
                    if on_completion is not None:
                        on_completion(completion)
    finally:
        completions.close()


def _record(task_id: str, completion: Completion, text_of: Callable[[str, str], str]) -> Record:
    """A finished completion as it is written."""
    text = text_of(task_id, completion.text)
    reply = {} if text == completion.text else {"reply": completion.text}
    return Record(
        task_id=task_id,
        completion_index=completion.completion_index,
        completion=text,
        token_ids=completion.token_ids,
        finish_reason=completion.finish_reason,
        stop_reason=completion.stop_reason,
        cumulative_logprob=completion.cumulative_logprob,
        **reply,
        **_extra(completion),
    )


def _extra(completion: Completion) -> dict[str, Any]:
    """``logprobs``, if asked for: by position, ``[token_id, logprob, rank]`` of each reported token."""
    if completion.logprobs is None:
        return {}
    return {
        "logprobs": [
            [[entry.token_id, entry.logprob, entry.rank] for entry in entries]
            for entries in completion.logprobs
        ]
    }
