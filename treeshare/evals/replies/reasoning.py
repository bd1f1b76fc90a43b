"""Reasoning in a chat model's reply, which is no part of its answer.

Models mark it in many ways: ``<think>`` (DeepSeek R1, Qwen 3), ``[THINK]`` (Magistral), ``<seed:think>``
(Seed-OSS), ``◁think▷`` (Kimi), ``<|START_THINKING|>`` (Command A), ``<|begin_of_thought|>`` (OpenThinker),
``<|inner_prefix|>`` (Apertus), the channels of gpt-oss and Gemma, sentences of Granite. A chat template may
open it in the prompt: then only its end is in the reply.
"""

from __future__ import annotations

import re
from typing import Any

_NAME = (
    r"(?!(?:end|start|begin)_)(?:[a-z]{1,20}[:_])?(?:think(?:ing)?|thoughts?|thought_process|chain_of_thought"
    r"|cot|reason(?:ing|s)?(?:_content)?|reflection|scratchpad|analysis|inner_monologue|internal_monologue|planning)"
)
_QUOTES = ("'", '"', "`")

_OPEN = re.compile(
    rf"(?:<{_NAME}\s?>|\[{_NAME}\]|<\|{_NAME}\|>|\u25c1{_NAME}\u25b7"
    rf"|<\|(?:(?:start|begin)_(?:of_)?{_NAME}|{_NAME}_(?:start|begin)|inner_prefix)\|>"
    r"|<\|channel\|>\s?(?:analysis|commentary)[^<>]{0,80}<\|message\|>"
    r"|<\|channel>\s?(?:thought|analysis)\b)",
    re.IGNORECASE,
)
_CLOSE = re.compile(
    rf"(?:</{_NAME}\s?>|\[/{_NAME}\]|<\|/{_NAME}\|>|\u25c1/{_NAME}\u25b7"
    rf"|<\|(?:end_(?:of_)?{_NAME}|{_NAME}_end|inner_suffix)\|>"
    r"|(?:<\|start\|>assistant)?<\|channel\|>\s?final[^<>]{0,80}<\|message\|>"
    r"|<channel\|>)",
    re.IGNORECASE,
)
_END_MARKS = re.compile(
    r"(?:<\|(?:return|call|end|eot|eom|eot_id|im_end|endoftext|end_of_text|end_response)\|>|</s>|<eos>|<end_of_turn>)\s?\Z",
    re.IGNORECASE,
)
_ANY_SPECIAL = re.compile(r"think|thought|reason|channel|inner_prefix", re.IGNORECASE)
_BARE_CHANNEL = re.compile(r"(?:analysis|commentary)(?=[A-Z\"'`<\d(\[])")
_BARE_FINAL = re.compile(r"assistant\s?final")
"""gpt-oss, where a tokenizer has left out its special tokens: only the channels' names are there."""

_GRANITE_OPEN = re.compile(r"\s{0,9}Here(?: is|'s) my thought process:", re.IGNORECASE)
_GRANITE_CLOSE = re.compile(r"Here(?: is|'s) my response:", re.IGNORECASE)


def final_answer(reply: str) -> str:
    """A reply without its reasoning; empty if that never ended, as nothing was answered then.

    What stands before an end without a beginning is reasoning too: the prompt had opened it.
    """
    kept: list[str] = []
    start, is_open = 0, False
    for begin, end, opens in _marks(reply):
        if begin < start:
            continue
        if opens:
            if not is_open:
                kept.append(reply[start:begin])
            is_open = True
        else:
            if not is_open:
                kept.clear()
            start, is_open = end, False
    if is_open:
        return ""
    kept.append(_END_MARKS.sub("", reply[start:]))
    return "\n".join(part for part in kept if part.strip())


def opened_reasoning(prompt: str) -> str:
    """The mark of reasoning that a prompt's end leaves open, in which the reply continues; else nothing."""
    tail = prompt[-1000:]
    last = None
    for found in _OPEN.finditer(tail):
        last = found
    if last is None or tail[last.end() :].strip():
        return ""
    return last[0]


def marks_reasoning(tokenizer: Any) -> bool:  # noqa: ANN401
    """Whether a tokenizer marks reasoning by special tokens, which text without special tokens would hide."""
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    return any(token.special and _ANY_SPECIAL.search(token.content) for token in added)


def _marks(reply: str) -> list[tuple[int, int, bool]]:
    """Where reasoning begins and ends: each mark's begin and end, and whether it opens."""
    marks = [(found.start(), found.end(), True) for found in _OPEN.finditer(reply)]
    marks += [(found.start(), found.end(), False) for found in _CLOSE.finditer(reply)]
    if found := _GRANITE_OPEN.match(reply):
        marks.append((found.start(), found.end(), True))
        marks += [(close.start(), close.end(), False) for close in _GRANITE_CLOSE.finditer(reply)]
    if found := _BARE_CHANNEL.match(reply):
        marks.append((found.start(), found.end(), True))
        marks += [(close.start(), close.end(), False) for close in _BARE_FINAL.finditer(reply)]
    return sorted(mark for mark in marks if not _is_quoted(reply, mark[0], mark[1]))


def _is_quoted(reply: str, begin: int, end: int) -> bool:
    """Whether a mark stands in quotation marks or a code span: then it is spoken of."""
    before, behind = reply[max(0, begin - 2) : begin], reply[end : end + 2]
    quote = before[-1:]
    return quote in _QUOTES and behind[:1] == quote and not (quote == "`" and "``" in (before, behind))
