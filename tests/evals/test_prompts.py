from __future__ import annotations

import sys

import pytest

from treeshare.errors import ConfigError
from treeshare.evals import (
    CheckResult,
    Problem,
    PromptOptions,
    Task,
    build_prompts,
    completion_end,
    cost_table,
    encode_prompts,
    shot_costs,
)
from treeshare.evals.sandbox import Verdict
from treeshare.tree import PromptTree, Shot


class Toy(Task):
    name, stop, max_tokens, num_shots = "toy", ("\n",), 8, 2
    chat_instruction = "Answer."

    def load(self, data):
        return [Problem(task_id=str(i), prompt=f"add {i}?") for i in range(3)]

    def shots(self, data, shot_data):
        return [Shot(prompt=f"add {i}?", answer=f" {i}!", task_id=str(i)) for i in range(5)]

    def check(self, problem, completion, sandbox, limits):
        right = completion == problem.task_id
        return CheckResult(verdict=Verdict.PASSED if right else Verdict.WRONG_ANSWER, detail="")

    def answer(self, problem, completion):
        return completion or None


class Tokenizer:
    """One token a character; begins with token 1 unless told otherwise."""

    chat_template = "yes"

    def __call__(self, text, add_special_tokens=True):
        return {"input_ids": [1] * add_special_tokens + [ord(c) for c in text]}

    def apply_chat_template(self, messages, tokenize, add_generation_prompt):
        assert not tokenize
        assert add_generation_prompt
        ((role, content),) = [(m["role"], m["content"]) for m in messages]
        if "refused" in content:
            raise ValueError("template says\nno")
        return f"<{role}>{content}</{role}><assistant>"


def text_of(ids):
    return "".join(chr(i) for i in ids)


def test_the_tasks_own_number_of_shots_unless_asked():
    task = Toy()
    problems = task.load(None)
    built = build_prompts(task, problems, PromptOptions())
    assert built.texts()[2] == "add 0? 0!\n\nadd 1? 1!\n\nadd 2?"
    assert built.texts()[0] == "add 1? 1!\n\nadd 2? 2!\n\nadd 0?"
    assert build_prompts(task, problems, PromptOptions(num_shots=0)).texts() == [p.prompt for p in problems]
    with pytest.raises(ConfigError, match="shots: got 5, expected at most 4"):
        build_prompts(task, problems, PromptOptions(num_shots=5))


def test_a_task_without_shots_says_so():
    class Bare(Toy):
        num_shots = 0

        def shots(self, data, shot_data):
            return Task.shots(self, data, shot_data)

    problems = Bare().load(None)
    assert build_prompts(Bare(), problems, PromptOptions()).texts()[0] == "add 0?"
    with pytest.raises(ConfigError, match="shots: got 1, expected at most 0"):
        build_prompts(Bare(), problems, PromptOptions(num_shots=1))


def test_prompts_are_tokenised_whole_and_the_template_goes_around_all_of_it():
    task = Toy()
    built = build_prompts(task, task.load(None), PromptOptions(num_shots=1))
    plain = encode_prompts(task, built, Tokenizer())
    assert [row[0] for row in plain] == [1, 1, 1]
    assert [text_of(row[1:]) for row in plain] == built.texts()
    chat = encode_prompts(task, built, Tokenizer(), chat=True)
    assert text_of(chat[1]) == "<user>Answer.\n\nadd 0? 0!\n\nadd 1?</user><assistant>"
    tree = PromptTree.from_prompts(chat)
    assert text_of(tree.nodes[0].token_ids).startswith("<user>Answer.\n\nadd ")


def test_templates_that_are_missing_or_refuse():
    task = Toy()
    built = build_prompts(task, task.load(None), PromptOptions())
    tokenizer = Tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(ConfigError, match="chat: the model has no chat template"):
        encode_prompts(task, built, tokenizer, chat=True)
    refused = build_prompts(task, [Problem(task_id="r", prompt="refused")], PromptOptions())
    with pytest.raises(ConfigError, match="chat template rejects them: template says no"):
        encode_prompts(task, refused, Tokenizer(), chat=True)


def test_what_the_choices_cost():
    task = Toy()
    problems = task.load(None)[1:]
    costs = shot_costs(task, problems, PromptOptions(num_shots=2), Tokenizer(), n=3)
    assert list(costs) == ["fixed", "random", "nearest", "nearest-shared"]
    for choice, stats in costs.items():
        built = build_prompts(task, problems, PromptOptions(num_shots=2, shot_choice=choice))
        tree = PromptTree.from_prompts(encode_prompts(task, built, Tokenizer()))
        assert stats == tree.stats(3)
    row = cost_table(costs).splitlines()[2]
    assert row.startswith(f"| fixed | {costs['fixed'].logical_tokens} | {costs['fixed'].unique_tokens} |")


def test_a_choice_that_cannot_be_had_says_why(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.feature_extraction.text", None)
    costs = shot_costs(Toy(), Toy().load(None), PromptOptions(), Tokenizer())
    assert "needs scikit-learn" in costs["nearest"]
    assert cost_table(costs).splitlines()[-2].startswith("| nearest | shot_choice: nearest needs")
    assert costs["fixed"].unique_tokens > 0


def test_chat_replies_have_no_stop_strings_and_more_tokens():
    assert completion_end(Toy()) == (("\n",), 8)
    assert completion_end(Toy(), chat=True) == ((), 1024)


def test_what_a_manifest_keeps():
    assert PromptOptions().record(Toy()) == {"shots": 2, "shot_choice": "fixed", "chat": False}
    assert PromptOptions(num_shots=0, chat=True).record(Toy()) == {"shots": 0, "chat": True}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_shots": -1}, "shots: got -1"),
        ({"shot_choice": "best"}, "shot_choice: got 'best', expected one of"),
    ],
)
def test_bad_options_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        PromptOptions(**arguments)
