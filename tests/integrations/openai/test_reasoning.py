"""Reasoning and tools through the server: fields in, fields out, whole and streamed."""

from __future__ import annotations

import json

import pytest

from tests.cli.reasoning_model import START, saved_reasoning_model
from tests.integrations.openai.serving import NAME, serving_folder_of
from treeshare.engine.llm import LLM
from treeshare.integrations.openai.job import make_job
from treeshare.integrations.openai.schema import CHAT, parse_body

HELLO = [{"role": "user", "content": "Hi"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["A", "B"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
COMMON = {"model": NAME, "seed": 5, "max_tokens": 40, "messages": HELLO}


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    return LLM(saved_reasoning_model(tmp_path_factory.mktemp("model")), dtype="float32")


@pytest.fixture(scope="module")
def served(llm):
    with serving_folder_of(llm) as server:
        yield server


def ask(served, **values):
    """The messages and finish reasons, whole; those of a stream must be the same."""
    answer = served.post("/v1/chat/completions", COMMON | values)
    assert answer.status_code == 200, answer.text
    choices = answer.json()["choices"]
    stream = served.post("/v1/chat/completions", COMMON | values | {"stream": True})
    grown = {choice["index"]: {} for choice in choices}
    for line in stream.text.splitlines():
        if line.startswith("data: {"):
            for piece in json.loads(line[6:])["choices"]:
                own = grown[piece["index"]]
                for name, value in piece["delta"].items():
                    own[name] = own[name] + value if name in own else value
                own["reason"] = piece["finish_reason"]
    for choice in choices:
        own = grown[choice["index"]]
        assert own.pop("reason") == choice["finish_reason"]
        for call, other in zip(
            own.get("tool_calls", []), choice["message"].get("tool_calls", []), strict=True
        ):
            call.pop("index")
            assert call.pop("id")[:5] == "call_"
            assert {**other, "id": None} == {**call, "id": None}
        for name in {*own, *choice["message"]} - {"role", "refusal", "tool_calls"}:
            assert (own.get(name) or "") == (choice["message"].get(name) or "")
    return [(choice["message"], choice["finish_reason"]) for choice in choices]


def test_reasoning_is_split_from_the_answer(served):
    opened = {"chat_template_kwargs": {"thinking": True}, "thinking_token_budget": 6, "n": 3}
    for message, _ in ask(served, **opened):
        assert message["reasoning"] == message["reasoning_content"]
        assert message["reasoning"]
        assert message["content"]
        assert "</think>" not in message["reasoning"]
    hidden = ask(served, **opened, include_reasoning=False)
    assert all(set(message) == {"role", "content", "refusal"} for message, _ in hidden)
    (message, reason), *_ = ask(served, **{**opened, "thinking_token_budget": None}, max_tokens=3)
    assert reason == "length"
    if "reasoning" in message:
        assert message["content"] is None or message["reasoning"]
    begun = ask(served, logit_bias={str(START): 30}, thinking_token_budget=5)
    assert all("reasoning" in message for message, _ in begun)


def test_a_forced_call_is_one_of_the_tool(served, llm):
    pytest.importorskip("llguidance", reason="llguidance is not installed")
    named = {"type": "function", "function": {"name": "weather"}}
    (closing,) = llm.get_tokenizer().encode("]", add_special_tokens=False)
    forced = {"tools": [TOOL], "logit_bias": {str(closing): 30}, "n": 3, "max_tokens": 200}
    for choice in (named, "required"):
        for message, reason in ask(served, tool_choice=choice, **forced):
            assert reason == "tool_calls"
            assert message["content"] is None
            for call in message["tool_calls"]:
                assert call["function"]["name"] == "weather"
                assert json.loads(call["function"]["arguments"])["city"] in ("A", "B")


def test_one_call_at_most(served, llm):
    """``parallel_tool_calls: false``, as vLLM has it: the list that is forced has one."""
    pytest.importorskip("llguidance", reason="llguidance is not installed")
    comma, closing = llm.get_tokenizer().encode(",]", add_special_tokens=False)
    bias = {str(comma): 60, str(closing): 30, str(START): -100}
    forced = {"tools": [TOOL], "tool_choice": "required", "logit_bias": bias, "max_tokens": 300}
    assert {reason for _, reason in ask(served, **forced, n=4)} == {"length"}  # call behind call
    for message, reason in ask(served, **forced, n=4, parallel_tool_calls=False):
        assert len(message["tool_calls"]) == 1
        assert reason == "tool_calls"


def test_a_tool_that_cannot_be_called_is_named(served):
    """Its parameters are what is wrong, not a ``response_format`` that nobody gave."""
    pytest.importorskip("llguidance", reason="llguidance is not installed")
    function = TOOL["function"] | {"parameters": {"type": "foo"}}
    values = {"tools": [TOOL | {"function": function}], "tool_choice": "required"}
    answer = served.post("/v1/chat/completions", COMMON | values)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["param"], error["message"]) == ("tools", "tools: json: Invalid type: foo")


def prompt(llm, **values):
    body = parse_body(CHAT, COMMON | values)
    (request,) = make_job(llm, body, model=NAME, seed=0).requests
    return llm.get_tokenizer().decode(request.prompt_token_ids)


def test_what_the_template_is_given(llm):
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "A"}'}}
    talk = [
        {"role": "developer", "content": [{"type": "text", "text": "Be"}, {"type": "text", "text": "brief"}]},
        *HELLO,
        {"role": "assistant", "content": None, "reasoning": "hm", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
        {"role": "assistant", "content": "It", "reasoning_content": "so"},
    ]
    expected = (
        "[system]Be\nbrief</s>[user]Hi</s>[assistant]<think>hm</think>"
        '<tool_call>{"name": "weather", "arguments": {"city": "A"}}</tool_call></s>'
        "[tool]rain</s>[assistant]<think>so</think>It"
    )
    assert prompt(llm, messages=talk) == expected + "</s>[assistant]"
    assert prompt(llm, messages=talk, add_generation_prompt=False) == expected + "</s>"
    going_on = {"add_generation_prompt": False, "continue_final_message": True}
    assert prompt(llm, messages=talk, **going_on) == expected
    assert json.dumps(TOOL)[:40] in prompt(llm, tools=[TOOL])
    assert json.dumps(TOOL)[:40] in prompt(llm, tools=[TOOL], tool_choice="none")
    (output,) = llm.chat(HELLO, tools=[TOOL], use_tqdm=False)
    assert output.prompt == prompt(llm, tools=[TOOL])
