"""What a request may be: refusals name the field, in OpenAI's form; no request ends another's."""

from __future__ import annotations

import json

import pytest

from tests.integrations.openai.serving import NAME
from treeshare import LLM
from treeshare.engine.chat import ChatOptions
from treeshare.integrations.openai.job import make_job
from treeshare.integrations.openai.schema import BODIES, CHAT, COMPLETIONS, ApiError, parse_body, read_json

HELLO = [{"role": "user", "content": "Hello?"}]


def chat(**message):
    return {"messages": [{"role": "user"} | message]}


TOOL = {"type": "function", "function": {"name": "weather"}}


def named(name):
    return {"type": "function", "function": {"name": name}}


def call(arguments):
    return {"function": {"name": "weather", "arguments": arguments}}


REFUSED = [
    (COMPLETIONS, {"prompt": None}, "prompt", "required"),
    (COMPLETIONS, {"prompt": ""}, "prompt", "empty prompt"),
    (COMPLETIONS, {"prompt": []}, "prompt", "not empty"),
    (COMPLETIONS, {"prompt": [[]]}, "prompt", "empty prompt"),
    (COMPLETIONS, {"prompt": {"text": "x"}}, "prompt", "a list of texts"),
    (COMPLETIONS, {"prompt": ["x", 1]}, "prompt", "a list of texts"),
    (COMPLETIONS, {"prompt": [True]}, "prompt", "a list of texts"),
    (COMPLETIONS, {"prompt": [1.5]}, "prompt", "a list of texts"),
    (COMPLETIONS, {"prompt": [2**70]}, "prompt", "a list of texts"),
    (COMPLETIONS, {"prompt": [-1]}, "prompt", "token ids in [0, 259)"),
    (COMPLETIONS, {"prompt": [[1], [259]]}, "prompt", "token ids in [0, 259)"),
    (COMPLETIONS, {"prompt": ["x"] * 2049}, "prompt", "at most 2048 prompts"),
    (COMPLETIONS, {"prompt": ["x"] * 2048, "n": 3}, "n", "at most 4096 completions"),
    (COMPLETIONS, {"prompt": "x" * 600}, "prompt", "context is 512 tokens"),
    (COMPLETIONS, {"max_tokens": 512}, "prompt", "context is 512 tokens"),
    (COMPLETIONS, {"max_tokens": 0}, "max_tokens", "got 0"),
    (COMPLETIONS, {"n": -1}, "n", "got -1"),
    (COMPLETIONS, {"n": 10**9}, "n", "got 1000000000"),
    (COMPLETIONS, {"n": 10**300}, "n", "less than or equal to 1048576"),
    (COMPLETIONS, {"n": True}, "n", "valid integer"),
    (COMPLETIONS, {"n": 1.0}, "n", "valid integer"),
    (COMPLETIONS, {"temperature": -0.1}, "temperature", "got -0.1"),
    (COMPLETIONS, {"temperature": 2.1}, "temperature", "got 2.1"),
    (COMPLETIONS, {"temperature": "1"}, "temperature", "valid number"),
    (COMPLETIONS, {"temperature": float("inf")}, "temperature", "finite"),
    (COMPLETIONS, {"temperature": 10**400}, "temperature", "valid number"),
    (COMPLETIONS, {"top_p": 0}, "top_p", "greater than 0"),
    (COMPLETIONS, {"top_k": 2**40}, "top_k", "less than"),
    (COMPLETIONS, {"repetition_penalty": 1e-300}, "repetition_penalty", "0.01"),
    (COMPLETIONS, {"seed": 2**64}, "seed", "less than"),
    (COMPLETIONS, {"stop": ""}, "stop", "non-empty"),
    (COMPLETIONS, {"stop": ["x"] * 100_000}, "stop", "at most 64 strings"),
    (COMPLETIONS, {"stop": "x" * 5000}, "stop", "4096 characters"),
    (COMPLETIONS, {"stop_token_ids": [259]}, "stop_token_ids", "[0, 259)"),
    (COMPLETIONS, {"stop_token_ids": [-1]}, "stop_token_ids", "[0, 259)"),
    (COMPLETIONS, {"stop_token_ids": [True] * 10}, "stop_token_ids[0]", "valid integer"),
    (COMPLETIONS, {"min_tokens": 17}, "min_tokens", "got 17"),
    (COMPLETIONS, {"logprobs": 21}, "logprobs", "got 21"),
    (COMPLETIONS, {"logprobs": True}, "logprobs", "valid integer"),
    (COMPLETIONS, {"max_tokens": 0}, "max_tokens", "at least 1 without echo"),
    (COMPLETIONS, {"best_of": 2}, "best_of", "only the value of n"),
    (COMPLETIONS, {"suffix": "x"}, "suffix", "write it into the prompt"),
    (COMPLETIONS, {"logit_bias": {"5": 101}}, "logit_bias", "at most 100"),
    (COMPLETIONS, {"logit_bias": {"x": 1}}, "logit_bias", "got 'x'"),
    (COMPLETIONS, {"logit_bias": {"259": 1}}, "logit_bias", "[0, 259)"),
    (COMPLETIONS, {"logit_bias": [1]}, "logit_bias", "dictionary"),
    (COMPLETIONS, {"allowed_token_ids": []}, "allowed_token_ids", "at least one"),
    (COMPLETIONS, {"allowed_token_ids": [259]}, "allowed_token_ids", "[0, 259)"),
    (COMPLETIONS, {"bad_words": [""]}, "bad_words", "non-empty"),
    (COMPLETIONS, {"bad_words": ["x"] * 129}, "bad_words", "at most 128"),
    (COMPLETIONS, {"structured_outputs": {}}, "structured_outputs", "exactly one of"),
    (COMPLETIONS, {"structured_outputs": {"regex": "("}}, "structured_outputs", "unclosed group"),
    (COMPLETIONS, {"structured_outputs": {"nope": 1}}, "structured_outputs", "got 'nope'"),
    (COMPLETIONS, {"response_format": {"type": "xml"}}, "response_format.type", "got 'xml'"),
    (COMPLETIONS, {"stream_options": {}}, "stream_options", "only with stream"),
    (COMPLETIONS, {"temprature": 1}, "temprature", "unknown field"),
    (COMPLETIONS, {"\x1b[31m": 1}, "\\x1b[31m", "unknown field"),
    (CHAT, {"messages": []}, "messages", "at least 1"),
    (CHAT, {"messages": [1] * 4000}, "messages[0]", "Message"),
    (CHAT, chat(), "messages[0].content", "required"),
    (CHAT, chat(content=[]), "messages[0].content", "required"),
    (CHAT, chat(content="x", role="root"), "messages[0].role", "got 'root'"),
    (CHAT, chat(content="x", role="function"), "messages[0].role", "got 'function'"),
    (CHAT, chat(content="x", tool_calls=[{}]), "messages[0].tool_calls[0].function", "required"),
    (CHAT, chat(content="x", reasoning="y"), "messages[0].reasoning", "only in an assistant's message"),
    (CHAT, chat(role="assistant", tool_calls=[call("[")]), "messages", "got '[', expected a JSON object"),
    (CHAT, {"tool_choice": "required"}, "tool_choice", "got 'required', expected one of the tools"),
    (CHAT, {"tool_choice": "any"}, "tool_choice", "expected none, auto, required"),
    (CHAT, {"tools": [TOOL], "tool_choice": named("x")}, "tool_choice", "got 'x', expected one of the tools"),
    (CHAT, {"tools": [TOOL, TOOL], "tool_choice": "required"}, "tools", "expected different names"),
    (CHAT, {"tools": [TOOL]}, "tools", "the model's chat template does not support"),
    (CHAT, {"continue_final_message": True}, "continue_final_message", "only with add_generation_prompt"),
    (CHAT, {"thinking_token_budget": 4}, "thinking_token_budget", "no known reasoning tags"),
    (CHAT, chat(content=[{"type": "image_url"}]), "messages[0].content", "'image_url'"),
    (CHAT, chat(content="x" * 600), "messages", "context is 512 tokens"),
    (CHAT, {"top_logprobs": 2}, "top_logprobs", "only with logprobs"),
    (CHAT, {"max_tokens": 2, "max_completion_tokens": 3}, "max_tokens", "differs"),
    (CHAT, {"tools": [{"type": "function"}]}, "tools[0].function", "required"),
    (CHAT, {"response_format": {"type": "json_schema"}}, "response_format", "json_schema is given"),
    (
        CHAT,
        {"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}},
        "response_format",
        "give one of them",
    ),
    (
        CHAT,
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"enum": []}}}},
        "response_format",
        "Unsatisfiable schema",
    ),
]


@pytest.mark.parametrize(("url", "change", "param", "words"), REFUSED)
def test_refusals(llm, url, change, param, words):
    body = {"model": NAME, "prompt": "Once"} if url == COMPLETIONS else {"model": NAME, "messages": HELLO}
    with pytest.raises(ApiError) as caught:
        make_job(llm, parse_body(url, body | change), model=NAME, seed=0)
    assert caught.value.status == 400
    error = caught.value.body["error"]
    assert error["param"] == param
    assert error["message"].startswith(param) or error["code"] == "context_length_exceeded"
    assert words in error["message"]
    assert error["message"].isprintable()
    assert len(error["message"]) < 400
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[" * 100_000,
        b'{"prompt": ' + b"[" * 900 + b"]" * 900 + b"}",
        b'{"prompt": "\xff"}',
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "x", "temperature": NaN}',
        b'{"n": ' + b"9" * 5000 + b"}",
        b"null",
        b"[]",
        b'"x"',
    ],
)
def test_what_is_no_request(served, content):
    headers = {"content-type": "application/json"}
    answer = served.http.post(COMPLETIONS, content=content, headers=headers)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


def is_number(field):
    return any(kind in str(field.annotation) for kind in ("int", "float")) and "str" not in str(
        field.annotation
    )


@pytest.mark.parametrize("url", [COMPLETIONS, CHAT])
@pytest.mark.parametrize("huge", [2**31, 2**63, 2**64, 10**30, 10**300])
def test_every_number_has_an_upper_limit(llm, url, huge):
    """Each field that is a number, or a list of them: no such value gets as far as the engine's arrays."""
    names = [name for name, field in BODIES[url].model_fields.items() if is_number(field)]
    assert len(names) > 10
    body = {"model": NAME, "prompt": "Once"} if url == COMPLETIONS else {"model": NAME, "messages": HELLO}
    for name in names:
        change = {name: [huge] if name == "stop_token_ids" else huge}
        if name == "seed" and huge < 2**64:
            continue
        if name == "top_logprobs":
            change["logprobs"] = True
        with pytest.raises(ApiError) as caught:
            make_job(llm, parse_body(url, body | change), model=NAME, seed=0)
        assert (caught.value.status, caught.value.param) == (400, name)


def test_half_characters_are_refused_and_whole_ones_are_not():
    assert read_json(b'{"prompt": "\\ud83d\\ude00"}') == {"prompt": "\U0001f600"}
    with pytest.raises(ApiError, match="surrogate"):
        read_json(b'{"a": ["\\uDE00"]}')


def test_fields_that_ask_for_nothing_are_taken(served):
    nothing = {
        "user": "me",
        "metadata": {"a": "b"},
        "store": False,
        "logit_bias": {},
        "suffix": None,
        "best_of": 1,
        "temperature": None,
        "stop": None,
        "stream": False,
    }
    body = {"model": NAME, "prompt": "Once", "max_tokens": 2, "seed": 1}
    plain, full = (served.post(COMPLETIONS, body | extra).json() for extra in ({}, nothing))
    assert plain["choices"] == full["choices"]
    body = {"messages": HELLO, "max_tokens": 2, "tools": [], "tool_choice": "auto"}
    assert served.post(CHAT, body | {"response_format": {"type": "text"}}).status_code == 200


def test_other_statuses(served):
    def error(answer):
        return answer.status_code, answer.json()["error"]["param"], answer.json()["error"]["code"]

    assert error(served.post(COMPLETIONS, {"model": "gpt", "prompt": "x"})) == (
        404,
        "model",
        "model_not_found",
    )
    assert error(served.post("/v1/embeddings", {})) == (404, None, None)
    assert error(served.http.get(COMPLETIONS)) == (405, None, None)
    text = served.http.post(COMPLETIONS, content=json.dumps({"prompt": "x"}))
    assert error(text) == (415, None, None)


def test_what_could_break_a_step_breaks_nothing(served):
    """Values at the edge of what is allowed, beside an ordinary request."""
    edges = [
        {"temperature": 5e-324},
        {"temperature": 2, "top_p": 5e-324},
        {"top_k": 2**31 - 1, "min_p": 1},
        {"repetition_penalty": 0.01, "presence_penalty": -2, "frequency_penalty": -2},
        {"repetition_penalty": 100, "presence_penalty": 2, "frequency_penalty": 2, "logprobs": 20},
        {"stop_token_ids": list(range(3, 259)), "min_tokens": 5},
        {"stop": [chr(300 + i) * 60 for i in range(64)]},
    ]
    for edge in edges:
        answer = served.post(COMPLETIONS, {"prompt": ["x", "y"], "max_tokens": 8, "n": 2} | edge)
        assert answer.status_code == 200, (edge, answer.text)
        assert len(answer.json()["choices"]) == 4


def test_a_chat_without_a_limit_asks_for_no_more_than_the_budget_holds(chat_model):
    small = LLM(chat_model, dtype="float32", kv_budget_bytes=200 * 256)
    body = parse_body(CHAT, {"messages": HELLO})
    job = make_job(small, body, model=NAME, seed=0)
    assert 64 < job.requests[0].params.max_tokens < 200
    with pytest.raises(ApiError, match="kv_budget_bytes: got 51200, expected at least"):
        make_job(small, parse_body(CHAT, {"messages": HELLO, "max_tokens": 300}), model=NAME, seed=0)


def test_a_chat_template_that_refuses(llm):
    template = "{{ raise_exception('roles must alternate') }}"
    body = parse_body(CHAT, {"messages": HELLO})
    with pytest.raises(ApiError, match="messages: the model's chat template rejects them: roles must"):
        make_job(llm, body, model=NAME, seed=0, chat=ChatOptions(chat_template=template))
    broken = "{{ messages.nothing.at.all }}"
    with pytest.raises(ApiError, match="chat template rejects"):
        make_job(llm, body, model=NAME, seed=0, chat=ChatOptions(chat_template=broken))
