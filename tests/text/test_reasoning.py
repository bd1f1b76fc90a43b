"""A reply's reasoning and answer: whole or in pieces of any size, the same, and nothing lost."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest

from treeshare.errors import ConfigError
from treeshare.text.reasoning import (
    PARSERS,
    ReasoningSplitter,
    ReasoningTags,
    reasoning_tags,
    split_reasoning,
)

TAGS = ReasoningTags("<think>", "</think>")
REPLIES = [
    "",
    "plain",
    "<think>why</think>because",
    "\n <think>\nwhy\n</think>\n\nbecause",
    "<think></think>nothing to think",
    "<think>never closed",
    "<think>cut </thi",
    "<think>twice <think>inner</think>out</think>rest",
    "<think>a</think>b<think>c</think>d",
    "text <think>before</think> it",
    "<thin",
    "<thinking>",
    "why</think>because",
    "</think>because",
    "  ",
    "<think>a < b </ c </think</think>x",
]


def oracle(text, *, is_open):
    """By a pattern over the whole text."""
    if not is_open:
        begun = re.match(r"\s*<think>", text)
        if not begun:
            return None, text
        text = text[begun.end() :]
    reasoning, _, answer = text.partition("</think>")
    return reasoning or None, answer


@pytest.mark.parametrize("is_open", [False, True])
@pytest.mark.parametrize("text", REPLIES)
def test_whole_and_in_pieces(text, is_open):
    expected = oracle(text, is_open=is_open)
    assert split_reasoning(text, TAGS, is_open=is_open) == expected
    for size in (1, 2, 3, 7):
        splitter = ReasoningSplitter(TAGS, is_open=is_open)
        parts = [splitter.feed(text[i : i + size]) for i in range(0, len(text), size)]
        parts.append(splitter.finish())
        found = "".join(part[0] for part in parts) or None, "".join(part[1] for part in parts)
        assert found == expected


def test_without_tags_all_is_answer():
    assert split_reasoning("<think>a</think>b", None, is_open=True) == (None, "<think>a</think>b")


def tokenizer(template=None, added=()):
    tokens = {i: SimpleNamespace(content=text, special=True) for i, text in enumerate(added)}
    return SimpleNamespace(chat_template=template, added_tokens_decoder=tokens)


def test_tags_of_a_model():
    assert reasoning_tags("auto", tokenizer("{{ m }}")) is None
    assert reasoning_tags("auto", None) is None
    assert reasoning_tags("auto", tokenizer("{% if '</think>' in m %}")) == TAGS
    assert reasoning_tags("auto", tokenizer(added=["<s>", "[THINK]", "[/THINK]"])) == PARSERS["mistral"]
    assert reasoning_tags("auto", tokenizer(added=["<think>"])) is None
    assert reasoning_tags("none", tokenizer("</think>")) is None
    assert reasoning_tags("", tokenizer("</think>")) is None
    assert reasoning_tags("seed_oss", None) == PARSERS["seed_oss"]
    assert reasoning_tags("<r> </r>", None) == ReasoningTags("<r>", "</r>")
    for wrong in ("<r>", "a b c", "<r> <r>", 3):
        with pytest.raises(ConfigError, match=r"reasoning_parser: got .*, expected auto, none, deepseek_r1"):
            reasoning_tags(wrong, None)
