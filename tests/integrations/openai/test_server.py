"""OpenAI's client against a real server: the answers are those of ``LLM.generate``, whole or streamed."""

from __future__ import annotations

import json
import re
import socket
import threading
import time

import httpx
import openai
import pytest

from tests.integrations.openai.serving import NAME, serving, wait_until
from treeshare import SamplingParams

PROMPTS = ["def f(x):\n    return", "def f(x):\n    yield", "Once"]
MESSAGES = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hello?"}]


def generated(llm, prompts, **params):
    return [
        [completion.text for completion in output.outputs]
        for output in llm.generate(prompts, SamplingParams(**params), use_tqdm=False)
    ]


def texts(answer, n=1):
    found = [choice.text for choice in answer.choices]
    assert [choice.index for choice in answer.choices] == list(range(len(found)))
    return [found[first : first + n] for first in range(0, len(found), n)]


def test_completions_are_those_of_generate(served, llm):
    params = {"n": 3, "seed": 11, "max_tokens": 14, "temperature": 0.9}
    expected = generated(llm, PROMPTS, **params)
    answer = served.client.completions.create(model=NAME, prompt=PROMPTS, **params)
    assert texts(answer, 3) == expected
    ids = [llm.encode(prompt) for prompt in PROMPTS]
    assert texts(served.client.completions.create(model=NAME, prompt=ids, **params), 3) == expected
    for prompt in (PROMPTS[2], ids[2]):
        alone = served.client.completions.create(model="other name", prompt=prompt, **params)
        assert texts(alone, 3) == expected[2:]
    assert answer.usage.prompt_tokens == sum(map(len, ids))
    assert 9 <= answer.usage.completion_tokens <= 9 * 14
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert {choice.finish_reason for choice in answer.choices} <= {"stop", "length"}
    assert (answer.object, answer.model) == ("text_completion", NAME)


def test_equal_prompts_of_a_request_get_different_completions(served, llm):
    params = {"seed": 5, "max_tokens": 12}
    twice = texts(served.client.completions.create(model=NAME, prompt=["Once"] * 2, **params))
    assert twice == generated(llm, ["Once"] * 2, **params)
    assert twice[0] != twice[1]


def test_chat_is_that_of_chat(served, llm):
    params = {"n": 2, "seed": 3, "temperature": 0.7}
    (output,) = llm.chat(MESSAGES, SamplingParams(max_tokens=10, **params), use_tqdm=False)
    parts = [{"role": m["role"], "content": [{"type": "text", "text": m["content"]}]} for m in MESSAGES]
    for messages, limit in ((MESSAGES, "max_tokens"), (parts, "max_completion_tokens")):
        answer = served.client.chat.completions.create(model=NAME, messages=messages, **params, **{limit: 10})
        assert [c.message.content for c in answer.choices] == [c.text for c in output.outputs]
        assert [c.finish_reason for c in answer.choices] == [c.finish_reason for c in output.outputs]
        assert answer.choices[0].message.role == "assistant"
        assert answer.usage.prompt_tokens == len(output.prompt_token_ids)
    assert answer.object == "chat.completion"


def test_an_answer_can_be_sent_back(served):
    first = served.client.chat.completions.create(model=NAME, messages=MESSAGES, max_tokens=6)
    history = [*MESSAGES, first.choices[0].message, {"role": "user", "content": "More?"}]
    more = served.client.chat.completions.create(model=NAME, messages=history, max_tokens=6)
    assert more.usage.prompt_tokens > first.usage.prompt_tokens


def test_without_a_limit_chat_goes_on_to_the_end_of_the_context(served):
    long = [{"role": "user", "content": "x" * 460}]
    answer = served.client.chat.completions.create(model=NAME, messages=long, extra_body={"ignore_eos": True})
    assert answer.usage.total_tokens == 512
    assert answer.choices[0].finish_reason == "length"


def test_seeds(served):
    def ask(**seed):
        answer = served.client.completions.create(model=NAME, prompt="Once", max_tokens=16, **seed)
        return answer.choices[0].text

    for seed in (0, 2**64 - 1, -(2**63)):
        assert ask(seed=seed) == ask(seed=seed)
    assert len({ask(), ask(), ask(), ask(seed=0)}) == 4
    assert ask(temperature=0) == ask(temperature=0)


def test_stop_strings_and_tokens(served, llm):
    params = {"seed": 2, "max_tokens": 40}
    ((whole,),) = generated(llm, "Once", **params, ignore_eos=True)
    place = next(i for i in range(3, len(whole)) if whole[i : i + 2].isascii() and whole[i] not in whole[:i])
    answer = served.client.completions.create(
        model=NAME, prompt="Once", stop=["never there", whole[place : place + 2]], **params
    )
    assert answer.choices[0].text == whole[:place]
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].stop_reason == whole[place : place + 2]
    (token,) = llm.encode(whole[place])
    answer = served.client.completions.create(
        model=NAME, prompt="Once", extra_body={"stop_token_ids": [token]}, **params
    )
    assert (answer.choices[0].text, answer.choices[0].stop_reason) == (whole[:place], token)


def test_the_samplers_other_fields(served, llm):
    params = {"top_k": 5, "min_p": 0.05, "repetition_penalty": 1.3, "min_tokens": 4, "ignore_eos": True}
    common = {"seed": 8, "max_tokens": 20, "top_p": 0.9, "presence_penalty": 0.4, "frequency_penalty": 0.2}
    answer = served.client.completions.create(model=NAME, prompt="Once", **common, extra_body=params)
    assert texts(answer) == generated(llm, "Once", **params, **common)


def test_echo(served):
    plain = served.client.completions.create(model=NAME, prompt=PROMPTS, seed=1, max_tokens=5)
    for prompt in (PROMPTS, [list(map(int, served.llm.llm.encode(p))) for p in PROMPTS]):
        echoed = served.client.completions.create(model=NAME, prompt=prompt, seed=1, max_tokens=5, echo=True)
        expected = [prompt + text for prompt, (text,) in zip(PROMPTS, texts(plain), strict=True)]
        assert texts(echoed) == [[text] for text in expected]


def test_logprobs_of_completions(served, llm):
    params = {"seed": 4, "max_tokens": 9, "n": 2}
    (output,) = llm.generate("Once", SamplingParams(logprobs=3, **params), use_tqdm=False)
    answer = served.client.completions.create(model=NAME, prompt="Once", logprobs=3, **params)
    for choice, completion in zip(answer.choices, output.outputs, strict=True):
        found = choice.logprobs
        expected = [at[i].logprob for i, at in zip(completion.token_ids, completion.logprobs, strict=True)]
        assert found.token_logprobs == expected
        assert [sorted(at.values()) for at in found.top_logprobs] == [
            sorted(entry.logprob for entry in at.values()) for at in completion.logprobs
        ]
        assert len(found.tokens) == len(found.text_offset) == len(completion.token_ids)
        for i, (token, offset) in enumerate(zip(found.tokens, found.text_offset, strict=True)):
            assert token in found.top_logprobs[i]
            parts = found.tokens[max(i - 1, 0) : i + 1]
            if not any(part.startswith("bytes:") for part in parts) and token[0] != "<":
                assert choice.text[offset : offset + len(token)] == token


def test_logprobs_of_chat(served):
    answer = served.client.chat.completions.create(
        model=NAME, messages=MESSAGES, seed=4, max_tokens=12, logprobs=True, top_logprobs=4
    )
    (choice,) = answer.choices
    tokens = choice.logprobs.content
    assert len(tokens) == answer.usage.completion_tokens
    kept = tokens if choice.finish_reason == "length" else tokens[:-1]
    raw = bytes(byte for token in kept for byte in token.bytes)
    assert raw.decode(errors="replace") == choice.message.content
    for token in tokens:
        values = [top.logprob for top in token.top_logprobs]
        assert values == sorted(values, reverse=True)
        assert len(values) == 4
        assert token.logprob <= values[0]
    plain = served.client.chat.completions.create(
        model=NAME, messages=MESSAGES, seed=4, max_tokens=12, logprobs=True
    )
    assert [token.logprob for token in plain.choices[0].logprobs.content] == [t.logprob for t in tokens]
    assert all(token.top_logprobs == [] for token in plain.choices[0].logprobs.content)


STREAMED = {
    "plain": {},
    "several": {"n": 3},
    "logprobs": {"n": 2, "logprobs": 2},
    "longer": {"max_tokens": 100, "extra_body": {"ignore_eos": True}},
    "special tokens": {"extra_body": {"skip_special_tokens": False}, "temperature": 2},
    "one token": {"max_tokens": 1},
}


def joined(stream, n, text_of):
    """What the pieces of a stream make: texts, log-probabilities and endings of the choices; the usage."""
    found = [["", [], None] for _ in range(n)]
    usage, num_pieces = None, 0
    for piece in stream:
        usage = piece.usage or usage
        for choice in piece.choices:
            num_pieces += 1
            streamed = found[choice.index]
            assert streamed[2] is None, "nothing comes after the end"
            streamed[0] += text_of(choice) or ""
            streamed[1] += [choice.logprobs] if choice.logprobs else []
            streamed[2] = choice.finish_reason
    return found, usage, num_pieces


@pytest.mark.parametrize("case", STREAMED)
def test_pieces_make_the_whole_completion(served, case):
    body = {"model": NAME, "prompt": "Once", "max_tokens": 24, "seed": 6, **STREAMED[case]}
    whole = served.client.completions.create(**body)
    stream = served.client.completions.create(**body, stream=True, stream_options={"include_usage": True})
    found, usage, _ = joined(stream, body.get("n", 1), lambda choice: choice.text)
    assert [streamed[0] for streamed in found] == [choice.text for choice in whole.choices]
    assert [streamed[2] for streamed in found] == [choice.finish_reason for choice in whole.choices]
    assert usage == whole.usage
    for streamed, choice in zip(found, whole.choices, strict=True):
        for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset") if choice.logprobs else ():
            pieces = [value for part in streamed[1] for value in getattr(part, name)]
            assert pieces == getattr(choice.logprobs, name)


@pytest.mark.parametrize("logprobs", [False, True])
def test_pieces_make_the_whole_chat(served, logprobs):
    body = {"model": NAME, "messages": MESSAGES, "max_tokens": 30, "seed": 9, "n": 2, "logprobs": logprobs}
    whole = served.client.chat.completions.create(**body)
    roles = []

    def text_of(choice):
        roles.append(choice.delta.role)
        return choice.delta.content

    found, usage, num_pieces = joined(served.client.chat.completions.create(**body, stream=True), 2, text_of)
    assert [streamed[0] for streamed in found] == [choice.message.content for choice in whole.choices]
    assert roles.count("assistant") == 2
    assert usage is None
    assert num_pieces > 10
    if logprobs:
        for streamed, choice in zip(found, whole.choices, strict=True):
            assert [token for part in streamed[1] for token in part.content] == choice.logprobs.content


def test_a_stop_string_is_never_streamed(served, llm):
    ((text,),) = generated(llm, "Once", seed=2, max_tokens=60, ignore_eos=True)
    stops = [text[i : i + 3] for i in range(6, 45, 3) if "\ufffd" not in text[i : i + 3]]
    assert len(stops) > 2
    for stop in stops:
        body = {"model": NAME, "prompt": "Once", "seed": 2, "max_tokens": 60, "stop": [stop, "x" * 50]}
        body["extra_body"] = {"ignore_eos": True}
        stream = served.client.completions.create(**body, stream=True)
        ((found, _, reason),), _, num_pieces = joined(stream, 1, lambda choice: choice.text)
        assert found == text[: text.index(stop)]
        assert reason == "stop"
        assert num_pieces > 1


def test_the_raw_form_of_a_stream(served):
    body = {"prompt": "Once", "max_tokens": 3, "ignore_eos": True, "stream": True}
    body["stream_options"] = {"include_usage": True}
    with served.http.stream("POST", "/v1/completions", json=body) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in answer.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    pieces = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert all(piece["usage"] is None for piece in pieces[:-1])
    assert pieces[-1]["choices"] == []
    assert pieces[-1]["usage"]["completion_tokens"] == 3
    assert len({piece["id"] for piece in pieces}) == 1


# -- who may ask, and how much --


def test_models_health_and_metrics(served):
    assert [model.id for model in served.client.models.list()] == [NAME, "other name"]
    assert served.client.models.retrieve("other name").max_model_len == 512
    with pytest.raises(openai.NotFoundError, match="model: got 'a/b', expected tiny"):
        served.client.models.retrieve("a/b")
    assert served.http.get("/health").json() == {"status": "ok"}

    def values():
        text = served.http.get("/metrics").text
        return {name: float(value) for name, value in re.findall(r"^(\w+)(?:\{.*\})? (\S+)$", text, re.M)}

    before = values()
    answer = served.client.completions.create(model=NAME, prompt="Once", max_tokens=4)
    after = values()
    for name, number in (("prompt", 4), ("generated", answer.usage.completion_tokens)):
        name = f"treeshare_{name}_tokens_total"
        assert after[name] - before[name] == number
    assert after["treeshare_requests_in_flight"] == after["treeshare_completions_running"] == 0
    assert 0 < after["treeshare_kv_bytes"] <= after["treeshare_kv_budget_bytes"]
    assert after["treeshare_request_seconds_count"] > 0


def test_a_key(async_llm):
    with serving(async_llm, api_key="sesame") as served:
        for key in (None, "Bearer other", "Bearer", "sesame", "Bearer sesame2", "Bearer \xe9"):
            headers = {} if key is None else {"authorization": key.encode("latin-1")}
            for answer in (
                served.http.get("/v1/models", headers=headers),
                served.post("/v1/completions", {"prompt": "Once"}, headers=headers),
            ):
                assert answer.status_code == 401
                assert answer.json()["error"]["code"] == "invalid_api_key"
        with pytest.raises(openai.AuthenticationError):
            served.client.models.list()
        right = served.client.with_options(api_key="sesame")
        assert right.completions.create(model=NAME, prompt="Once", max_tokens=2).usage.completion_tokens <= 2
        assert served.http.get("/health").status_code == 200


def test_long_bodies(async_llm):
    with serving(async_llm, max_body_bytes=2000) as served:

        def parts(size):
            yield b'{"prompt": "'
            for _ in range(size // 100):
                yield b"x" * 100
            yield b'", "max_tokens": 1}'

        headers = {"content-type": "application/json"}
        for size in (2000, 3_000_000):
            long = served.http.post("/v1/completions", content=parts(size), headers=headers)
            assert (long.status_code, long.json()["error"]["code"]) == (413, "body_too_large")
            long = served.post("/v1/completions", {"prompt": "x" * size})
            assert long.status_code == 413
        assert served.http.post("/v1/completions", content=parts(300), headers=headers).status_code == 200


def test_a_body_that_does_not_come(async_llm):
    with serving(async_llm, body_timeout_s=0.2) as served:
        with socket.create_connection(("127.0.0.1", served.http.base_url.port)) as slow:
            slow.sendall(
                b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
                b"content-length: 100\r\n\r\n{"
            )
            wait_until(lambda: 'status="408"' in served.http.get("/metrics").text or _slowly(slow))
        assert served.post("/v1/completions", {"prompt": "Once"}).status_code == 200


def _slowly(connection):
    time.sleep(0.1)
    connection.sendall(b" ")
    return False


LONG = {"prompt": "Once", "max_tokens": 500, "n": 4, "ignore_eos": True}


def test_a_full_queue(async_llm):
    with serving(async_llm, max_queue=1) as served:
        with served.http.stream("POST", "/v1/completions", json=LONG | {"stream": True}) as running:
            pieces = running.iter_bytes()
            next(pieces)
            with pytest.raises(openai.RateLimitError) as caught:
                served.client.completions.create(model=NAME, prompt="Once")
            assert caught.value.response.headers["retry-after"] == "1"
            assert caught.value.code == "queue_full"
        wait_until(lambda: served.post("/v1/completions", {"prompt": "Once"}).status_code == 200)


@pytest.mark.parametrize("stream", [True, False])
def test_who_hangs_up_frees_the_rows(served, stream):
    before = served.llm.num_tokens
    with httpx.Client(base_url=served.url) as client:
        if stream:
            with client.stream("POST", "/v1/completions", json=LONG | {"stream": True}) as running:
                pieces = running.iter_bytes()
                next(pieces)
                assert served.llm.num_unfinished == 4
        else:
            with pytest.raises(httpx.ReadTimeout):
                client.post("/v1/completions", json=LONG, timeout=0.3)
    wait_until(lambda: served.llm.num_unfinished == 0)
    assert 0 < served.llm.num_tokens - before < 2000
    metrics = served.http.get("/metrics").text
    assert "treeshare_requests_in_flight 0.0" in metrics
    assert 'status="499"' in metrics or stream


def test_a_fault_of_the_engine_is_500_for_everybody_and_then_all_is_well(served, monkeypatch, caplog):
    def broken(*_, **__):
        raise RuntimeError("injected")

    with monkeypatch.context() as patch:
        patch.setattr(served.llm.llm.engine.runner, "forward", broken)
        with pytest.raises(openai.InternalServerError, match="its log says why"):
            served.client.completions.create(model=NAME, prompt="Once")
    assert "injected" in caplog.text
    assert served.client.completions.create(model=NAME, prompt="Once").choices


def test_many_at_once(served, llm):
    """Clients that come together share a prompt; each gets what it would get alone."""
    prompts = [f"You are a poet of few words. Write about number {i}." for i in range(24)]
    expected = [generated(llm, prompt, seed=i, max_tokens=16)[0][0] for i, prompt in enumerate(prompts)]
    found = [None] * len(prompts)

    def ask(i):
        answer = served.client.completions.create(model=NAME, prompt=prompts[i], seed=i, max_tokens=16)
        found[i] = answer.choices[0].text

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == expected
