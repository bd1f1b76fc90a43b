"""A sampling run: the problems' prompts go to the engine, each finished completion to the journal at once."""

from __future__ import annotations

import dataclasses
import datetime
import os
from collections import Counter
from typing import TYPE_CHECKING, Any, Protocol, cast

from treeshare.config import FoldCost
from treeshare.engine.sequence import Request
from treeshare.errors import DataError, one_line
from treeshare.native import kernel_level
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
    """What makes completions: an ``Engine``, or several somewhere else."""

    @property
    def stats(self) -> EngineStats:
        """What it measured since ``run`` was called."""

    def run(
        self, requests: Sequence[Request], *, fold_cost: FoldCost | None = None
    ) -> Generator[Completion, None, None]:
        """Generate; yields each completion as it finishes. ``fold_cost`` is that of the run it resumes."""

    def cancel(self, index: int) -> int:
        """Give up a request; returns how many completions will not come."""


def make_manifest(
    llm: LLM,
    *,
    task: str,
    data: str,
    task_ids: Sequence[str],
    prompts: Sequence[Sequence[int]],
    params: SamplingParams,
    prompting: Mapping[str, bool | int | str] | None = None,
    problems_sha256: str = "",
    workers: str = "",
) -> Manifest:
    """The manifest of a run of ``params.n`` completions for each prompt.

    Raises:
        DataError: If a task id comes twice, or a prompt does not fit into the model.
    """
    twice = next((task_id for task_id, count in Counter(task_ids).items() if count > 1), None)
    if twice is not None:
        raise DataError(f"{task}: problem {one_line(twice)} comes twice, expected different task ids")
    for task_id, ids in zip(task_ids, prompts, strict=True):
        if not 0 < len(ids) < llm.loaded.max_model_len:
            raise DataError(
                f"{task}: the prompt of {one_line(task_id)} has {len(ids)} tokens, expected at least one and "
                f"fewer than the model's {llm.loaded.max_model_len}"
            )
    sampling = params.to_dict()
    n, seed = sampling.pop("n"), sampling.pop("seed")
    return Manifest(
        task=task,
        data=data,
        problems_sha256=problems_sha256,
        prompting=dict(prompting or {}),
        task_ids=list(task_ids),
        prompts_sha256=prompts_sha256(prompts),
        model=llm.loaded.model_id,
        model_sha256=llm.loaded.fingerprint(),
        dtype=str(llm.loaded.geometry.dtype).removeprefix("torch."),
        sharing=llm.engine.config.sharing,
        fold_cost=cast("dict[Any, int]", dataclasses.asdict(llm.engine.config.fold_cost)),
        sampling=sampling,
        n=n,
        seed=llm.seed if seed is None else seed,
        versions=current_versions() | computation(llm.engine),
        workers=workers,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def computation(engine: Engine) -> dict[str, str]:
    """What may round differently besides versions: the kernels, the threads, the widths of matmuls."""
    import torch

    return {
        "attention": engine.backend.name,
        "kernels": kernel_level(),
        "layers": "fused" if engine.loaded.fused else "unfused",
        "max_num_seqs": str(engine.config.max_num_seqs),
        "threads": str(torch.get_num_threads()),
    }


def make_requests(
    task_ids: Sequence[str], prompts: Sequence[Sequence[int]], params: SamplingParams, directory: RunDirectory
) -> list[Request]:
    """What is left of a run.

    Finished problems stay in, without completions: they belong to the tree. ``n`` is the run's, also where
    fewer are asked for: the engine's choices may depend on it, and so a bfloat16 rounding.
    """
    params = dataclasses.replace(params, n=directory.manifest.n)
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
    ends_problem: Callable[[Record], str | None] = lambda _: None,
) -> None:
    """Generate what is left and journal each completion as it finishes.

    Whatever ends this early, an interrupt included, leaves a run that the same command resumes. Beside the
    journal it writes what a report shows: the prompts' tree, once, and the counters over time. The engine
    folds as the run's manifest says. ``source`` generates instead of the model's own engine, as that one is
    configured.
    ``text_of`` turns a problem's id and generated text into its completion; the text is kept as ``reply``
    where it differs. ``ends_problem`` sees each finished completion; a reason in return gives up the
    problem's others, and its line keeps the reason as ``ended_problem``: a resumed run asks for no more.
    """
    if not os.path.lexists(directory.path / TREE_NAME):
        prompts = [request.prompt_token_ids for request in requests]
        decode = llm.loaded.decoder(skip_special_tokens=False)
        TreeFile.of_prompts(prompts, decode).write(directory.path / TREE_NAME)
    engine = source or llm.engine
    completions = engine.run(requests, fold_cost=FoldCost(**directory.manifest.fold_cost))
    try:
        with StatsLog(directory.path / STATS_NAME, lambda: engine.stats):
            for completion in completions:
                task_id = task_ids[completion.request_index]
                text = text_of(task_id, completion.text)
                reply = {} if text == completion.text else {"reply": completion.text}
                record = Record(
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
                reason = ends_problem(record)
                if reason:
                    record = record.model_copy(update={ENDED_KEY: reason})
                    engine.cancel(completion.request_index)
                directory.append(record)
                if on_completion is not None:
                    on_completion(completion)
    finally:
        completions.close()


def _extra(completion: Completion) -> dict[str, Any]:
    """``logprobs``, when asked for: per token ``[token_id, logprob, rank]`` of each reported token."""
    if completion.logprobs is None:
        return {}
    return {"logprobs": [[[one.token_id, one.logprob, one.rank] for one in at] for at in completion.logprobs]}
