"""What of a reply is its answer."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from treeshare.evals.replies import final_answer, marks_reasoning, opened_reasoning

PAIRS = [
    ("<think>", "</think>"),
    ("<Thinking>", "</Thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<reflection>", "</reflection>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("\u25c1think\u25b7", "\u25c1/think\u25b7"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<longcat_think>", "</longcat_think>"),
    ("<|thinking|>", "<|/thinking|>"),
    ("<|reasoning_start|>", "<|reasoning_end|>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
    ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
    ("<|channel|>commentary<|message|>", "<|channel|>final<|message|>"),
    ("<|channel>thought\n", "<channel|>"),
    ("Here is my thought process:", "Here is my response:"),
]
MENTIONS = ["'{}'", '"{}"', "`{}`"]


@pytest.mark.parametrize(("begin", "end"), PAIRS)
def test_reasoning_is_cut(begin, end):
    assert final_answer(f"{begin}\n5?\n{end}\n12") == "\n12"
    assert final_answer(f"{begin}{end}12") == "12"
    assert final_answer(f"{begin}5?{end}") == ""
    assert final_answer(f"{begin}\nI am not") == ""
    if not begin.startswith("Here"):
        assert final_answer(f"Let me see.\n{begin}5?{end}12") == "Let me see.\n\n12"
        assert final_answer(f"5?{end}12") == "12"  # the prompt had opened it
        assert final_answer(f"{begin}5?{end}6? {begin}7?{end}12") == "6? \n12"
        assert final_answer(f"12 {begin}or 13") == ""


@pytest.mark.parametrize("quoted", MENTIONS)
@pytest.mark.parametrize("mark", ["<think>", "</think>", "[/THINK]"])
def test_a_mark_that_is_spoken_of_is_none(quoted, mark):
    text = f"print({quoted.format(mark)})"
    assert final_answer(text) == text
    assert final_answer(f"<think>a{quoted.format(mark)}b</think>{text}") == text


def test_a_mark_beside_a_fence_is_one():
    assert final_answer("[THINK]```\n5\n```[/THINK]```\n12\n```") == "```\n12\n```"


def test_channels_without_their_special_tokens():
    assert final_answer("analysisWe need 12.assistantfinalIt is 12.") == "It is 12."
    assert final_answer("analysisWe need") == ""
    assert final_answer("analysis of it: 12") == "analysis of it: 12"


def test_text_without_reasoning_is_kept():
    for text in ("", "12", "a <thing> b", "[THINKER]", "I think </b>", "<|im_start|>x"):
        assert final_answer(text) == text
    assert final_answer("12<|im_end|>") == "12"


@pytest.mark.parametrize(("begin", "end"), [pair for pair in PAIRS if "channel" not in pair[0]])
def test_reasoning_that_the_prompt_opens(begin, end):
    if begin.startswith("Here"):
        return
    opened = opened_reasoning(f"User: 7 + 5?\nAssistant: {begin}\n")
    assert opened == begin
    assert final_answer(f"{opened}5? I am not") == ""
    assert final_answer(f"{opened}5?{end}12") == "12"
    assert opened_reasoning(f"Assistant: {begin}\n\n{end}\n\n") == ""
    assert opened_reasoning("Assistant:") == ""


def test_special_tokens_that_mark_reasoning():
    def tokenizer(*tokens):
        added = {
            i: SimpleNamespace(content=text, special=special) for i, (text, special) in enumerate(tokens)
        }
        return SimpleNamespace(added_tokens_decoder=added)

    assert marks_reasoning(tokenizer(("</s>", True), ("[THINK]", True)))
    assert marks_reasoning(tokenizer(("<|channel|>", True)))
    assert not marks_reasoning(tokenizer(("</s>", True), ("<think>", False)))  # it is in the text
    assert not marks_reasoning(tokenizer())
