"""A message's reasoning, content and calls: whole or in pieces of any size, the same."""

from __future__ import annotations

import json

import pytest

from treeshare.integrations.openai.answer_message import GrowingMessage
from treeshare.integrations.openai.tool_calls import schema_of
from treeshare.text.reasoning import ReasoningTags

TAGS = ReasoningTags("<think>", "</think>")
WEATHER = '{"name": "weather", "arguments": {"city": "Köln"}}'
CALL = f"<tool_call>\n{WEATHER}\n</tool_call>"
ARGUMENTS = {"city": "Köln"}

CASES = {
    "text": ("It rains.", "It rains.", []),
    "hermes": (CALL, None, [ARGUMENTS]),
    "hermes behind text": (f"Let me see.\n{CALL}\n", "Let me see.", [ARGUMENTS]),
    "two calls": (f"{CALL}\n{CALL}", None, [ARGUMENTS, ARGUMENTS]),
    "text between": (f"a {CALL} b {CALL} c", "a b c", [ARGUMENTS, ARGUMENTS]),
    "no arguments": ('<tool_call>{"name": "weather"}</tool_call>', None, [{}]),
    "parameters": (
        '<tool_call>{"name": "weather", "parameters": {"city": 1}}</tool_call>',
        None,
        [{"city": 1}],
    ),
    "arguments as text": (
        '<tool_call>{"name": "w", "arguments": "{\\"a\\": 1}"}</tool_call>',
        None,
        [{"a": 1}],
    ),
    "never closed": (f"<tool_call>{WEATHER}", None, [ARGUMENTS]),
    "cut": ('x <tool_call>{"name": "wea', 'x <tool_call>{"name": "wea', []),
    "broken": ("<tool_call>{name}</tool_call>", "<tool_call>{name}</tool_call>", []),
    "half a character": (
        '<tool_call>{"name": "w", "arguments": {"a": "\\ud800"}}</tool_call>',
        '<tool_call>{"name": "w", "arguments": {"a": "\\ud800"}}</tool_call>',
        [],
    ),
    "a name of half a character": (
        '<tool_call>{"name": "\\udfff"}</tool_call>',
        '<tool_call>{"name": "\\udfff"}</tool_call>',
        [],
    ),
    "no number": (
        '{"name": "weather", "arguments": {"a": 1e999}}',
        '{"name": "weather", "arguments": {"a": 1e999}}',
        [],
    ),
    "broken, then whole": (f"<tool_call>{{</tool_call>{CALL}", "<tool_call>{</tool_call>", [ARGUMENTS]),
    "opened twice": (
        f"<tool_call><tool_call>{WEATHER}</tool_call>",
        f"<tool_call><tool_call>{WEATHER}</tool_call>",
        [],
    ),
    "no name": ('<tool_call>{"arguments": {}}</tool_call>', '<tool_call>{"arguments": {}}</tool_call>', []),
    "arguments of another kind": (
        '<tool_call>{"name": "w", "arguments": [1]}</tool_call>',
        '<tool_call>{"name": "w", "arguments": [1]}</tool_call>',
        [],
    ),
    "mistral": (f"[TOOL_CALLS][{WEATHER}, {WEATHER}]", None, [ARGUMENTS, ARGUMENTS]),
    "mistral, newer": ('[TOOL_CALLS]weather[ARGS]{"city": 2}', None, [{"city": 2}]),
    "mistral, broken": ("[TOOL_CALLS][{", "[TOOL_CALLS][{", []),
    "llama": ('{"name": "weather", "parameters": {"city": 3}}', None, [{"city": 3}]),
    "llama, two": (f"{WEATHER}; {WEATHER}", None, [ARGUMENTS, ARGUMENTS]),
    "llama, tagged": (f"<|python_tag|>{WEATHER}", None, [ARGUMENTS]),
    "bare list": (f"[{WEATHER}]", None, [ARGUMENTS]),
    "an unknown tool": ('{"name": "rain", "parameters": {}}', '{"name": "rain", "parameters": {}}', []),
    "JSON that is no call": ('{"a": 1}', '{"a": 1}', []),
    "JSON and text": (f"{WEATHER} it is", f"{WEATHER} it is", []),
    "blanks": ("  \n", "  \n", []),
    "half a tag": ("a <tool_c", "a <tool_c", []),
    "empty": ("", "", []),
}


def grown(text, size, **options):
    message, found = GrowingMessage(TAGS, key="k", **options), {}
    pieces = [text[i : i + size] for i in range(0, len(text), size)]
    for delta in [*(d for piece in pieces for d in message.feed(piece)), *message.finish()]:
        assert delta
        for name, value in delta.items():
            assert value
            found[name] = found[name] + value if name in found else value
    return found, message


@pytest.mark.parametrize("thought", ["", "<think>hm, <tool_call></think>\n"])
@pytest.mark.parametrize("name", CASES)
def test_whole_and_in_pieces(name, thought):
    text, content, arguments = CASES[name]
    options = {"is_open": False, "tools": ["weather"]}
    message = GrowingMessage(TAGS, key="k", **options)
    whole = message.whole(thought + text)
    calls = whole.get("tool_calls", [])
    assert [json.loads(call["function"]["arguments"]) for call in calls] == arguments
    assert (message.finish_reason("stop"), message.finish_reason("length")) == (
        "tool_calls" if arguments else "stop",
        "length",
    )
    assert len({call["id"] for call in calls}) == len(calls)
    assert whole.get("reasoning") == whole.get("reasoning_content") == (thought[7:-9] or None)
    if not thought:
        assert whole["content"] == content
    elif arguments:
        assert (whole["content"] or "").strip() == (content or "")
    for size in (1, 2, 5, 1000):
        found, _ = grown(thought + text, size, **options)
        for index, call in enumerate(found.get("tool_calls", [])):
            assert call.pop("index") == index
        expected = {k: v for k, v in whole.items() if v and k != "role"}
        assert found == expected


def test_tools_that_may_not_be_called_and_reasoning_that_is_not_shown():
    whole = GrowingMessage(TAGS, is_open=True, shows_reasoning=False).whole(f"why</think>{CALL}")
    assert whole == {"role": "assistant", "content": CALL, "refusal": None}


def test_forced_calls():
    options = {"is_open": False, "tools": ["weather", "time"]}
    (call,) = GrowingMessage(None, forced="weather", **options).whole('{"city": 4}')["tool_calls"]
    assert call["function"] == {"name": "weather", "arguments": '{"city": 4}'}
    text = '[{"name": "time", "parameters": {}}, {"name": "weather", "parameters": {"city": 5}}]'
    calls = GrowingMessage(None, forced="required", **options).whole(text)["tool_calls"]
    assert [call["function"]["name"] for call in calls] == ["time", "weather"]
    cut = GrowingMessage(None, forced="weather", **options).whole('{"city": ')
    assert cut["content"] == '{"city": '
    tools = [{"function": {"name": name, "parameters": {"type": "object"}}} for name in ("a", "b")]
    assert schema_of(tools, "a") == {"type": "object"}
    choices = schema_of(tools, "required")["items"]["anyOf"]
    assert [choice["properties"]["name"]["const"] for choice in choices] == ["a", "b"]


def test_one_call_at_most():
    """As vLLM does without parallel calls: further ones are left out, whole or in pieces."""
    text = f"a {CALL} b {CALL} c"
    options = {"is_open": False, "tools": ["weather"], "max_calls": 1}
    whole = GrowingMessage(TAGS, key="k", **options).whole(text)
    assert (whole["content"], len(whole["tool_calls"])) == ("a b c", 1)
    (call,) = grown(text, 3, **options)[0]["tool_calls"]
    assert call["id"] == whole["tool_calls"][0]["id"]
