"""MATH-500, AIME, AMC: golds and solutions of the data are right, others are wrong."""

from __future__ import annotations

import json

import pytest

from treeshare.errors import DataError
from treeshare.evals import PromptOptions, build_prompts
from treeshare.tasks.registry import get_task

CONTESTS = {
    "aime2024/aime_2024.jsonl": ("aime-2024", 30),
    "aime2025/aime_2025.jsonl": ("aime-2025", 30),
    "aime2025/aime_2025.nemo.jsonl": ("aime-2025", 30),
    "amc2023/amc_2023.jsonl": ("amc-2023", 40),
}


def passes(task, problem, completion):
    return task.check(problem, completion, None, None).passed


@pytest.mark.parametrize("file", CONTESTS)
def test_contests(shared, file):
    name, size = CONTESTS[file]
    task, problems = get_task(name), get_task(name).load(shared(file))
    assert len(problems) == size
    for problem in problems:
        gold = int(problem.data["answer"])
        assert problem.prompt == f"Question: {problem.data['problem']}\nAnswer:"
        for form in (
            "Thus $\\boxed{{{}}}$.",
            " {}",
            "$x = {}$\nso",
            "So.\n\nThe final answer is: ${}$. I hope it is correct",
        ):
            assert passes(task, problem, form.format(gold)), form
            assert not passes(task, problem, form.format(gold + 1)), form
        if gold >= 0:
            assert passes(task, problem, f"\\boxed{{{gold:03d}}}")
        assert not passes(task, problem, "")


def solutions(shared):
    path = shared("math500/math500.jsonl")
    return [json.loads(line)["solution"] for line in path.read_text(encoding="utf-8").splitlines()], path


@pytest.mark.parametrize("step", [11, pytest.param(1, marks=pytest.mark.slow)])
def test_math_500(shared, step):
    texts, path = solutions(shared)
    task = get_task("math-500")
    problems = task.load(path)
    assert len(problems) == 500
    right = wrong = 0
    for problem, text, other in list(zip(problems, texts, texts[1:] + texts[:1], strict=True))[::step]:
        minerva = f" So.\nFinal Answer: The final answer is ${problem.data['answer']}$. I hope it is correct."
        box = f"\\[\\boxed{{{problem.data['answer']}}}\\]"
        reply = f"<think>\\boxed{{0}}</think>At first \\boxed{{77}}, but:\n\n**Final Answer**\n\n{box}"
        assert passes(task, problem, text), problem.task_id
        assert passes(task, problem, minerva), problem.task_id
        assert passes(task, problem, task.from_chat(problem, reply)), problem.task_id
        right += 1
        wrong += not passes(task, problem, other)
    assert wrong >= 0.95 * right  # neighbours with one answer are few


def test_the_shots_are_our_own_and_in_the_published_form(shared):
    texts, path = solutions(shared)
    task = get_task("math-500")
    problems = task.load(path)
    shots = task.shots(path, None)
    assert len(shots) == task.num_shots == 4
    for shot in shots:
        assert not any(problem.prompt in shot.prompt or shot.prompt in problem.prompt for problem in problems)
        assert shot.answer.endswith("$. I hope it is correct.")
    (prompt,) = build_prompts(task, problems[:1], PromptOptions(data=path)).texts()
    assert prompt.count("Problem:\n") == 5
    assert prompt.endswith("\n\nSolution:")
    (asked,) = build_prompts(task, problems[:1], PromptOptions(data=path, chat=True)).texts()
    assert asked == problems[0].data["problem"]
    (both,) = build_prompts(task, problems[:1], PromptOptions(data=path, chat=True, num_shots=1)).texts()
    assert both.count("Problem:\n") == 2
    more = task.shots(path, path)
    assert len(more) == 504
    assert texts[0] in more[4].answer


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"problem": "?", "answer": "x"}, "record 0, answer: 'x', expected a whole number"),
        ({"problem": "?", "answer": 1.5}, "'1.5', expected a whole number"),
        ({"problem": "?", "answer": ""}, "'', expected a whole number"),
        ({"answer": 5}, "Field required"),
        ({"problem": "?", "answer": None}, "answer"),
    ],
)
def test_golds_that_are_none_are_refused(tmp_path, row, message):
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(row))
    with pytest.raises(DataError, match=message):
        get_task("aime-2024").load(path)


@pytest.mark.parametrize(
    "row",
    [
        {"problem": "?", "answer": "025", "id": 60},
        {"Problem": "?", "Answer": 25, "ID": "2024-I-1"},
        {"question": "?", "answer": 25.0},
        {"problem": "?", "expected_answer": "25"},
    ],
)
def test_field_names_of_several_sets(tmp_path, row):
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(row))
    task = get_task("aime-2024")
    (problem,) = task.load(path)
    assert passes(task, problem, "\\boxed{25}")
    assert problem.task_id == f"aime-2024/{row.get('id', row.get('ID', 0))}"
