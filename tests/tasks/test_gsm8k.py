from __future__ import annotations

import json

import pytest

from treeshare.errors import DataError
from treeshare.evals import Problem, PromptOptions, build_prompts, evaluate_completions
from treeshare.evals.sandbox import Limits, Verdict
from treeshare.tasks.gsm8k import Gsm8k, extract_answer


def check(problem, completion):
    return Gsm8k().check(problem, completion, None, Limits())


@pytest.mark.parametrize(
    ("reply", "is_right"),
    [
        ("So \\boxed{\\frac{10}{2}}.", True),
        ("The answer is 10/2.", True),
        ("The answer is $\\frac{10}{2}$ apples.", True),
        ("<think>The answer is 5.</think>The answer is 9/2.", False),
        ("The answer is 2^2 + 1.", True),
        ("The answer is 4-6.", False),
        ("\\boxed{x = 5}", True),
        ("\\boxed{5\\text{ apples}}", True),
        ("\\boxed{2,3}", False),
        ("The answer is five.", True),
        ("The answer is 5.", True),
    ],
)
def test_a_chat_reply_is_read_as_mathematics(reply, is_right):
    problem = Problem(task_id="a", prompt="", data={"answer": "5"})
    assert check(problem, Gsm8k().from_chat(problem, reply)).passed == is_right


def test_a_completion_of_a_base_model_keeps_its_published_meaning():
    problem = Problem(task_id="a", prompt="", data={"answer": "5"})
    assert not check(problem, "The answer is 10/2.").passed
    assert check(problem, "The answer is 5.\n\nQ: ...\nA: The answer is 7.").passed


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("3 + 4 = 7.\n#### 7", "7"),
        (" 3 + 4 = 7. The answer is 7.", "7"),
        ("The answer is $1,450.50 a day.", "1450.5"),
        ("The answer is 18.00", "18"),
        ("the answer is: 007", "7"),
        ("The final answer is **12**.", "12"),
        ("The answer is \\(12\\).", "12"),
        ("The answer is -$5.", "-5"),
        ("The answer is \u22123", "-3"),
        ("The answer is -0.0", "0"),
        ("The answer is .50", "0.5"),
        ("The answer is 5. The answer is 6.", "5"),
        ("The answer is 12,", "12"),
        ("####1000", "1000"),
        ("The answer is " + "9" * 5000, "9" * 5000),
        ("It is 7.", None),
        ("The answer is seven.", None),
        ("The answer is 1/2.", None),
        ("The answer is 12/24.", None),
        ("The answer is 10:30.", None),
        ("", None),
    ],
)
def test_the_answer_is_the_number_after_the_mark_and_nothing_else(text, answer):
    assert extract_answer(text) == answer


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_problem_and_its_verdicts(tmp_path):
    path = write(tmp_path / "d.jsonl", {"question": "1 + 1?", "answer": "It is <<1+1=2>>2.\n#### 2"})
    task = Gsm8k()
    (problem,) = task.load(path)
    assert (problem.task_id, problem.prompt) == ("gsm8k/0", "Q: 1 + 1?\nA:")
    assert check(problem, " 1 + 1 = 2. The answer is 2.").passed
    wrong = check(problem, " The answer is 3.")
    assert (wrong.verdict, wrong.detail) == (Verdict.WRONG_ANSWER, "answered 3, expected 2")
    assert check(problem, " It is 2.").detail == "no answer found"
    assert task.answer(problem, "The answer is 2.00") == task.answer(problem, "#### 2") == "2"
    assert task.answer(problem, "It is 2.") is None
    assert not task.needs_sandbox


def test_completions_are_evaluated_without_a_sandbox_and_keep_their_votes(tmp_path):
    path = write(tmp_path / "d.jsonl", {"question": "1 + 1?", "answer": "#### 2"})
    texts = ["The answer is 2.0", "The answer is 3", "no idea"]
    records = [
        {"task_id": "gsm8k/0", "completion_index": i, "completion": text} for i, text in enumerate(texts)
    ]
    task = Gsm8k()
    evaluation = evaluate_completions(task, task.load(path), records, None, workers=2, limits=Limits())
    lines = [json.loads(line) for line in evaluation.results_jsonl().splitlines()]
    assert [(line["passed"], line.get("answer")) for line in lines] == [
        (True, "2"),
        (False, "3"),
        (False, None),
    ]


def test_data_without_an_answer_is_refused(tmp_path):
    path = write(tmp_path / "d.jsonl", {"question": "q", "answer": "The answer is 2."})
    with pytest.raises(DataError, match="record 0: no number after ####"):
        Gsm8k().load(path)


def test_shots_are_ours_and_then_the_train_split(tmp_path):
    train = write(
        tmp_path / "train.jsonl",
        {"question": "2 + 2?", "answer": "Two and two\nmake <<2+2=4>>4.\n#### 4"},
    )
    data = write(tmp_path / "test.jsonl", {"question": "1 + 1?", "answer": "#### 2"})
    task = Gsm8k()
    own = task.shots(data, None)
    assert len(own) == task.num_shots == 8
    assert all(extract_answer(shot.answer) is not None for shot in own)
    both = task.shots(data, train)
    assert both[:8] == own
    assert both[8].text == "Q: 2 + 2?\nA: Two and two. make 4. The answer is 4."
    (text,) = build_prompts(task, task.load(data), PromptOptions(data=data)).texts()
    assert text.count("\n\nQ: ") == 8
    assert text.endswith("\n\nQ: 1 + 1?\nA:")


def test_our_own_shots_add_up():
    import re

    for shot in Gsm8k().shots(data=__file__, shot_data=None):
        sums = re.findall(r"([\d *+-]+) = (\d+)", shot.answer)
        assert sums
        assert all(eval(left) == int(right) for left, right in sums)
        assert extract_answer(shot.answer) == sums[-1][1]


def test_all_gold_solutions_pass_and_their_neighbours_do_not(shared):
    task = Gsm8k()
    for name, expected in (("test", 1319), ("train", 7473)):
        path = shared(f"gsm8k/{name}.jsonl")
        problems = task.load(path)
        assert len(problems) == expected
        answers = [json.loads(line)["answer"] for line in path.read_text().splitlines()]
        for problem, answer in zip(problems, answers, strict=True):
            assert problem.data["answer"] == answer.rpartition("#### ")[2].replace(",", "")
            assert check(problem, answer[answer.rindex("####") :]).passed
            off = int(problem.data["answer"]) + 1
            assert check(problem, f"The answer is {off}.").verdict is Verdict.WRONG_ANSWER
        in_data = {problem.prompt for problem in problems}
        assert not any(shot.prompt in in_data for shot in task.shots(path, None))
    shots = task.shots(None, shared("gsm8k/train.jsonl"))[8:]
    golds = task.load(shared("gsm8k/train.jsonl"))
    stated = [extract_answer(shot.answer[shot.answer.rindex("The answer is") :]) for shot in shots]
    assert stated == [gold.data["answer"] for gold in golds]
