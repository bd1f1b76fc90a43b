"""Loads what the commands work on: a task's problems, prompts, a model."""

from __future__ import annotations

import hashlib
import os
import sys
from typing import TYPE_CHECKING, Any

from treeshare.cli.outputs import fitted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from treeshare.engine.llm import LLM
    from treeshare.evals.problem import Problem, Task
    from treeshare.evals.prompts import PromptOptions
    from treeshare.models import LoadedModel
    from treeshare.models.loading import ModelDescription
    from treeshare.tree import FewShotPrompts


def load_task(
    name: str,
    data: Path | None,
    limit: int | None = None,
    *,
    own_code: bool = True,
    options: Mapping[str, str] | None = None,
) -> tuple[Task, list[Problem]]:
    """Load a task and its problems.

    Args:
        name: A task's name, or ``FILE.py:CLASS``.
        data: File with the task's data, in place of its usual source.
        limit: Keep only the first ``limit`` problems.
        own_code: Whether ``FILE.py:CLASS`` is allowed, which runs the file's code.
        options: What is chosen of the task, by name.

    Raises:
        ConfigError: If there is no such task, or it has no such option.
        DataError: If its data is missing or malformed.
    """
    from treeshare.tasks.registry import get_task

    task = get_task(name, own_code=own_code, options=options)
    return task, task.load(data)[:limit]


def problems_sha256(problems: Sequence[Problem]) -> str:
    """SHA-256 of everything that a task has read: prompts, and the data by which completions are checked."""
    from treeshare.evals.numerals import dumps

    digest = hashlib.sha256()
    for problem in problems:
        fields = [problem.task_id, problem.prompt, sorted(problem.data.items())]
        digest.update(dumps(fields, sort_keys=True, default=str).encode() + b"\n")
    return digest.hexdigest()


def encode_prompts(
    task: Task, built: FewShotPrompts, model: LoadedModel | ModelDescription, options: PromptOptions
) -> list[list[int]]:
    """Token ids of whole prompts.

    Raises:
        ConfigError: If the model has no tokenizer, or no chat template where one is asked for.
    """
    from treeshare.errors import ConfigError
    from treeshare.evals import prompts

    if model.tokenizer is None:
        raise ConfigError("--model: it has no tokenizer, but prompts are text; give a model with a tokenizer")
    return prompts.encode_prompts(
        task,
        built,
        model.tokenizer,
        chat=options.chat,
        chat_template_kwargs=options.chat_template_kwargs,
    )


def quiet_libraries() -> None:
    """Keep progress bars and warnings of the libraries that load models off stderr."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    hub_logging.set_verbosity_error()


def load_llm(model: str, **options: Any) -> LLM:  # noqa: ANN401
    """Load a model without the libraries' progress bars, and print a line about it on stderr.

    Args:
        model: As for ``LLM``.
        **options: As for ``LLM``.
    """
    from treeshare.engine.dtype_speed import faster_dtype
    from treeshare.engine.llm import LLM

    quiet_libraries()
    llm = LLM(model, **options)
    unfused, company = llm.loaded.unfused_reason, llm.engine.runner.company_reason
    faster = faster_dtype(llm.loaded)
    line = (
        f"{model}: {llm.dtype}"
        + (f", {llm.loaded.quantization} weights" if llm.loaded.quantization else "")
        + f", loaded in {llm.loaded.load_s:.1f} s, "
        f"KV budget {llm.kv_budget_bytes / 2**20:.0f} MiB, attention {llm.engine.backend_name}"
        + (f", layers not fused: {unfused}" if unfused else ", fused layers")
        + (f"; bits may depend on what else runs: {company}" if company else "")
        + (f"; {faster}" if faster else "")
    )
    print(fitted(line, sys.stderr), file=sys.stderr)
    return llm
