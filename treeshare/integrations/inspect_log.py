"""A run as a log of Inspect's, which its viewer, its ``score`` command and its data frames read.

A sample is a completion: its id is the problem's, its epoch counts the completions of the problem from 1, and
its score is what ``evaluate`` said. The scores' mean over a problem's epochs, and of these over problems, is
pass@1.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from treeshare.errors import ConfigError, DataError, one_line
from treeshare.installation import how_to_add

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from inspect_ai.log import EvalLog, EvalSample

    from treeshare.evals.judged import JudgedCompletion, JudgedRun

_SCORER = "treeshare"


def export_inspect(run: JudgedRun, out: Path, prompts: Mapping[str, str] | None = None) -> int:
    """Write a run as a log; a file that exists is replaced.

    Args:
        run: What to write.
        out: A name that ends in ``.json`` or ``.eval``, Inspect's two forms.
        prompts: Each problem's prompt; where none is known, its task id stands for it.

    Returns:
        Completions written.

    Raises:
        ConfigError: If the name ends otherwise, or Inspect is not installed.
        DataError: If the run has no completion, or the file cannot be written.
    """
    if out.suffix not in (".json", ".eval"):
        raise ConfigError.of("--out", got=str(out), expected="a name that ends in .json or .eval")
    if not run.num_completions:
        raise DataError(f"export: {one_line(run.path)} contains no completion; run `treeshare sample` first")
    try:
        from inspect_ai.log import write_eval_log
    except ImportError as error:
        raise ConfigError(f"--format inspect: Inspect is not installed; {how_to_add('inspect')}") from error
    log = _log(run, prompts or {})
    try:
        write_eval_log(log, os.fspath(out))
    except OSError as error:
        raise DataError(f"cannot write {one_line(out)}: {error.strerror or one_line(error)}") from error
    return run.num_completions


def _log(run: JudgedRun, prompts: Mapping[str, str]) -> EvalLog:
    from inspect_ai.log import EvalConfig, EvalDataset, EvalLog, EvalMetric, EvalResults, EvalScore, EvalSpec

    manifest, counts = run.manifest, run.counts()
    samples = [
        _sample(completion, manifest.model, prompts.get(task_id, task_id))
        for task_id, completions in run.problems.items()
        for completion in completions
    ]
    results = None
    if counts:
        mean = sum(num_right / num_checked for num_checked, num_right in counts.values()) / len(counts)
        metric = EvalMetric(name="mean", value=mean)
        score = EvalScore(name=_SCORER, scorer=_SCORER, metrics={"mean": metric})
        results = EvalResults(total_samples=len(samples), completed_samples=len(samples), scores=[score])
    spec = EvalSpec(
        created=manifest.created,
        task=manifest.task,
        dataset=EvalDataset(
            name=manifest.task, samples=len(run.problems), sample_ids=list(run.problems), shuffled=False
        ),
        model=f"none/{manifest.model}",  # the provider that loads nothing, where Inspect scores again
        config=EvalConfig(epochs=manifest.n, epochs_reducer=["mean"]),
        metadata={"treeshare": manifest.model_dump(mode="json")},
    )
    return EvalLog(status="success", eval=spec, results=results, samples=samples)


def _sample(completion: JudgedCompletion, model: str, prompt: str) -> EvalSample:
    from inspect_ai.log import EvalSample
    from inspect_ai.model import ChatMessageAssistant, ChatMessageUser, ModelOutput
    from inspect_ai.scorer import Score

    record, result = completion.record, completion.result
    reason = "max_tokens" if record.finish_reason == "length" else "stop"
    scores = None
    if result is not None:
        explanation = ": ".join(filter(None, (result.verdict, result.detail)))
        answer = record.completion if result.answer is None else result.answer
        scores = {_SCORER: Score(value="C" if result.passed else "I", answer=answer, explanation=explanation)}
    return EvalSample(
        id=record.task_id,
        epoch=record.completion_index + 1,
        input=prompt,
        target="",
        messages=[ChatMessageUser(content=prompt), ChatMessageAssistant(content=record.completion)],
        output=ModelOutput.from_content(model, record.completion, stop_reason=reason),
        scores=scores,
        metadata={"cumulative_logprob": record.cumulative_logprob},
    )
