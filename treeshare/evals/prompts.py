"""Whole prompts of a task's problems: with worked examples and a chat template.

The text is made whole, then tokenised whole; what the prompts share is found in the tokens afterwards. A chat
template is therefore applied to the whole prompt, worked examples included, as one user message.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from treeshare.config import require_choice, require_int
from treeshare.engine.chat import ChatOptions, check_template_kwargs
from treeshare.engine.prompts import PromptEncoder
from treeshare.errors import ConfigError
from treeshare.tree import SHOT_CHOICES, FewShotPrompts, ShotChoice, choose_shots

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from treeshare.evals.problem import Problem, Task
    from treeshare.tree import Shot, TreeStats

CHAT_MAX_TOKENS = 1024
"""Maximum number of tokens of a reply, where the task asks for fewer: chat models explain first."""


@dataclass(frozen=True, kw_only=True)
class PromptOptions:
    """How prompts are made.

    Attributes:
        num_shots: Worked examples before each problem; None takes the task's published number.
        shot_choice: ``fixed``, ``random`` (per ``seed``), ``nearest`` or ``nearest-shared``: see
            ``choose_shots``.
        seed: Of the random choice.
        chat: Apply the model's chat template.
        data: The task's data, as for ``Task.load``.
        shot_data: A file to take worked examples from, in the same field names.
        chat_template_kwargs: What the chat template is given beside the messages; only with ``chat``.

    Raises:
        ConfigError: If a value is out of range.
    """

    num_shots: int | None = None
    shot_choice: ShotChoice = "fixed"
    seed: int = 0
    chat: bool = False
    data: Path | None = None
    shot_data: Path | None = None
    chat_template_kwargs: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.chat_template_kwargs and not self.chat:
            raise ConfigError("chat_template_kwargs: got some without a chat template; use chat too")
        check_template_kwargs(self.chat_template_kwargs)
        if self.num_shots is not None:
            require_int("shots", self.num_shots, low=0)
        require_choice("shot_choice", self.shot_choice, SHOT_CHOICES)

    def shots_of(self, task: Task) -> int:
        """How many worked examples stand before a problem."""
        if self.num_shots is not None:
            return self.num_shots
        in_chat = task.chat_num_shots if self.chat else None
        return task.num_shots if in_chat is None else in_chat

    def record(self, task: Task) -> dict[str, Any]:
        """What a manifest keeps of it; the seed is the run's, and the prompts' own hash decides."""
        num_shots = self.shots_of(task)
        choice = {"shot_choice": self.shot_choice} if num_shots else {}
        given = self.chat_template_kwargs
        switches = {"chat_template_kwargs": json.dumps(given, sort_keys=True)} if given else {}
        return {"shots": num_shots, **choice, "chat": self.chat, **switches}


def build_prompts(task: Task, problems: Sequence[Problem], options: PromptOptions) -> FewShotPrompts:
    """The problems with their worked examples in front; ``encode_prompts`` makes tokens of it.

    Raises:
        ConfigError: If there are too few worked examples.
        DataError: If they cannot be loaded.
    """
    return _with_shots(task, problems, _pool(task, options), options)


def shot_costs(
    task: Task,
    problems: Sequence[Problem],
    options: PromptOptions,
    tokenizer: Any,  # noqa: ANN401
    n: int = 1,
) -> dict[ShotChoice, TreeStats | str]:
    """What each choice of ``options.num_shots`` worked examples costs, ``n`` completions for each problem.

    Returns:
        Counts of the tree, or why that choice is not possible.

    Raises:
        ConfigError: If the tokenizer has no chat template but needs one.
        DataError: As ``build_prompts``.
    """
    pool = _pool(task, options)
    encode = _encoder(task, tokenizer, options.chat, options.chat_template_kwargs)
    costs: dict[ShotChoice, TreeStats | str] = {}
    for choice in SHOT_CHOICES:
        try:
            prompts = _with_shots(task, problems, pool, replace(options, shot_choice=choice))
        except ConfigError as error:
            costs[choice] = str(error)
        else:
            costs[choice] = prompts.tree(encode).stats(n)
    return costs


def cost_table(costs: dict[ShotChoice, TreeStats | str]) -> str:
    """``shot_costs`` as Markdown."""
    lines = ["| shots | logical tokens | unique tokens | sharing ratio |", "|---|--:|--:|--:|"]
    for choice, stats in costs.items():
        if isinstance(stats, str):
            lines.append(f"| {choice} | {stats} | | |")
        else:
            counts = f"{stats.logical_tokens} | {stats.unique_tokens} | {stats.sharing_ratio:.2f}"
            lines.append(f"| {choice} | {counts} |")
    return "\n".join(lines)


def encode_prompts(
    task: Task,
    prompts: FewShotPrompts,
    tokenizer: Any,  # noqa: ANN401
    *,
    chat: bool = False,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> list[list[int]]:
    """Token ids of the whole prompts, with the special tokens that the tokenizer or its template adds.

    Args:
        task: Says what a chat model is told first.
        prompts: From ``build_prompts``.
        tokenizer: A transformers tokenizer.
        chat: Apply its chat template.
        chat_template_kwargs: What the template is given beside the message.

    Raises:
        ConfigError: If there is no chat template, or it refuses the message.
    """
    encode = _encoder(task, tokenizer, chat, chat_template_kwargs)
    return [encode(text) for text in prompts.texts()]


def completion_end(task: Task, *, chat: bool = False) -> tuple[tuple[str, ...], int]:
    """Where completions end: the task's stop strings, and the maximum number of tokens.

    A chat model ends its reply by its own will, so no string does, and explains before it answers, so there
    are at least ``CHAT_MAX_TOKENS``. What of a reply is the completion, ``Task.from_chat`` says.
    """
    return ((), max(task.max_tokens, CHAT_MAX_TOKENS)) if chat else (task.stop, task.max_tokens)


def _pool(task: Task, options: PromptOptions) -> Sequence[Shot]:
    return task.shots(options.data, options.shot_data) if options.shots_of(task) else []


def _with_shots(
    task: Task, problems: Sequence[Problem], pool: Sequence[Shot], options: PromptOptions
) -> FewShotPrompts:
    num_shots = options.shots_of(task)
    shots = choose_shots(
        [(problem.task_id, problem.prompt) for problem in problems],
        pool,
        num_shots=num_shots,
        choice=options.shot_choice,
        seed=options.seed,
    )
    asked = options.chat and not num_shots
    return FewShotPrompts(
        problems=[(asked and problem.chat_prompt) or problem.prompt for problem in problems],
        shots_by_problem=[[shot.text for shot in row] for row in shots],
        separator=task.separator,
    )


def _encoder(
    task: Task,
    tokenizer: Any,  # noqa: ANN401
    chat: bool,
    chat_template_kwargs: Mapping[str, Any] | None,
) -> Callable[[str], list[int]]:
    encoder = PromptEncoder(tokenizer, str(getattr(tokenizer, "name_or_path", "") or "the model"))
    if not chat:
        return encoder.encode
    if getattr(tokenizer, "chat_template", None) is None:
        raise ConfigError("chat: the model has no chat template; leave out --chat, or use an instruct model")
    front = f"{task.chat_instruction}\n\n" if task.chat_instruction else ""
    system = [{"role": "system", "content": task.chat_system}] if task.chat_system else []
    options = ChatOptions(chat_template_kwargs=chat_template_kwargs)

    def encode(text: str) -> list[int]:
        conversation = [*system, {"role": "user", "content": front + text}]
        if task.chat_prefill:
            return encoder.begun_reply(conversation, task.chat_prefill, options)
        ids: list[int] = encoder.chat_prompt(conversation, options)["prompt_token_ids"]
        return ids

    return encode
