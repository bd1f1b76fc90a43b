from __future__ import annotations

import json

import pytest

from treeshare.errors import DataError
from treeshare.evals import PromptOptions, build_prompts
from treeshare.evals.sandbox import Limits, Verdict
from treeshare.tasks.humaneval import HumanEval

ROWS = [
    {
        "task_id": f"HumanEval/{i}",
        "prompt": f'def plus_{i}(x):\n    """Add {i}."""\n',
        "entry_point": f"plus_{i}",
        "canonical_solution": f"    return x + {i}\n",
        "test": f"def check(f):\n    assert f(1) == {1 + i}\n",
    }
    for i in range(3)
]


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "humaneval.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def test_zero_shot_is_the_datas_prompt_and_shots_are_others(data):
    task = HumanEval()
    problems = task.load(data)
    assert build_prompts(task, problems, PromptOptions(data=data)).texts() == [row["prompt"] for row in ROWS]
    texts = build_prompts(task, problems, PromptOptions(data=data, num_shots=1)).texts()
    whole = [row["prompt"] + row["canonical_solution"].rstrip() for row in ROWS]
    assert texts == [f"{whole[shot]}\n\n{ROWS[i]['prompt']}" for i, shot in enumerate((1, 0, 0))]


def test_verdicts(data, sandbox):
    task = HumanEval()
    problem = task.load(data)[2]

    def verdict(completion):
        return task.check(problem, completion, sandbox, Limits(wall_s=5)).verdict

    assert verdict("    return x + 2\n") is Verdict.PASSED
    assert verdict("    return x + 3\n") is Verdict.WRONG_ANSWER
    assert verdict("    return\n") is Verdict.WRONG_ANSWER
    assert verdict("return x + 2\n") is Verdict.RUNTIME_ERROR


def test_a_chat_reply_with_the_whole_function_or_only_its_body(data, sandbox):
    task = HumanEval()
    problem = task.load(data)[2]
    for block in ("def plus_2(x):\n    return x + 2\n", "    return x + 2\n"):
        completion = task.from_chat(problem, f"Here:\n```python\n{block}```")
        assert task.check(problem, completion, sandbox, Limits()).passed


def test_data_twice_is_refused(data):
    data.write_text(json.dumps(ROWS[0]) + "\n" + json.dumps(ROWS[0]) + "\n")
    with pytest.raises(DataError, match="HumanEval/0 occurs twice"):
        HumanEval().load(data)
