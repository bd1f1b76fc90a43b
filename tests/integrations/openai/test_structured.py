"""Structured answers through OpenAI's client: those of ``LLM.generate``."""

from __future__ import annotations

import json

import pytest

from tests.integrations.openai.serving import NAME
from tests.integrations.openai.test_server import MESSAGES, PROMPTS, generated, texts

pytest.importorskip("llguidance", reason="llguidance is not installed")


def test_structured_answers_are_those_of_generate(served, llm):
    """By OpenAI's names and by vLLM's, whole and streamed, in completions and chat."""
    schema = {
        "type": "object",
        "properties": {"a": {"enum": ["x", "yy"]}},
        "required": ["a"],
        "additionalProperties": False,
    }
    params = {"n": 3, "seed": 2, "max_tokens": 40, "temperature": 1.0}
    structured = {"json": schema}
    expected = generated(llm, PROMPTS[:1], structured_outputs=structured, bad_words=["zz"], **params)
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema, "strict": True}}
    for body in ({"response_format": form}, {"structured_outputs": structured}):
        body |= {"bad_words": ["zz"], "logit_bias": {"5": 0}}
        answer = served.client.completions.create(model=NAME, prompt=PROMPTS[:1], extra_body=body, **params)
        assert texts(answer, 3) == expected
        assert [choice.finish_reason for choice in answer.choices] == ["stop"] * 3
    assert {json.loads(text)["a"] for text in expected[0]} <= {"x", "yy"}
    chat = served.client.chat.completions.create(
        model=NAME, messages=MESSAGES, response_format=form, max_completion_tokens=40, seed=1
    )
    assert json.loads(chat.choices[0].message.content)["a"] in ("x", "yy")
    pieces = served.client.chat.completions.create(
        model=NAME, messages=MESSAGES, response_format=form, max_completion_tokens=40, seed=1, stream=True
    )
    streamed = "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
    assert streamed == chat.choices[0].message.content
