"""What the commands work on: a task's problems, sampling parameters, a model."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from treeshare.engine.llm import LLM
    from treeshare.evals.problem import Problem, Task
    from treeshare.models.loading import LoadedModel, ModelDescription
    from treeshare.tree import FewShotPrompts


def load_task(
    name: str, data: Path | None, limit: int | None = None, *, own_code: bool = True
) -> tuple[Task, list[Problem]]:
    """A task and its first ``limit`` problems, or all.

    Raises:
        ConfigError: If there is no such task.
        DataError: If its data is missing or malformed.
    """
    from treeshare.tasks.registry import get_task

    task = get_task(name, own_code=own_code)
    return task, task.load(data)[:limit]


def problems_sha256(problems: Sequence[Problem]) -> str:
    """SHA-256 of all that a task has read: prompts, and what its checker needs."""
    digest = hashlib.sha256()
    for problem in problems:
        fields = [problem.task_id, problem.prompt, sorted(problem.data.items())]
        digest.update(json.dumps(fields, sort_keys=True, default=str).encode() + b"\n")
    return digest.hexdigest()


def encode_prompts(
    task: Task, built: FewShotPrompts, model: LoadedModel | ModelDescription, *, chat: bool = False
) -> list[list[int]]:
    """Token ids of whole prompts.

    Raises:
        ConfigError: If the model has no tokenizer, or no chat template where one is asked for.
    """
    from treeshare.errors import ConfigError
    from treeshare.evals import prompts

    if model.tokenizer is None:
        raise ConfigError("--model: it has no tokenizer, and a task's prompts are text; give one that has")
    return prompts.encode_prompts(task, built, model.tokenizer, chat=chat)


def load_llm(model: str, **options: Any) -> LLM:  # noqa: ANN401
    """Load a model, quietly: the libraries' own progress bars would hide ours.

    Args:
        model: As for ``LLM``.
        **options: Likewise.
    """
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
        f"KV budget {llm.kv_budget_bytes / 2**20:.0f} MiB, attention {llm.engine.backend_name}"
        + (", fused layers" if llm.loaded.fused else ""),
        file=sys.stderr,
    )
    return llm
