"""``echo`` with ``logprobs``, ``max_tokens`` 0 and vLLM's ``prompt_logprobs`` against ``LLM.score``."""

from __future__ import annotations

import json

import pytest

from tests.integrations.openai.serving import NAME, saved_chat_model, serving_folder_of
from treeshare.engine.llm import LLM

PROMPTS = ["Once upon a time", "Once upon a hill", "x"]


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    return LLM(saved_chat_model(tmp_path_factory.mktemp("model")), dtype="float32")


@pytest.fixture(scope="module")
def served(llm):
    with serving_folder_of(llm) as server:
        yield server


def scores(llm, prompt):
    ids = llm.encode(prompt) if isinstance(prompt, str) else prompt
    (found,) = llm.score([(ids[:1], ids[1:])], use_tqdm=False)
    return found.logprobs


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("max_tokens", [0, 1, 3])
def test_echo_with_logprobs(served, llm, max_tokens, stream):
    for prompts in (PROMPTS, [list(llm.encode(prompt)) for prompt in PROMPTS]):
        body = {"model": NAME, "prompt": prompts, "echo": True, "logprobs": 2, "n": 2, "seed": 3}
        choices = {}
        answer = served.post("/v1/completions", body | {"max_tokens": max_tokens, "stream": stream})
        assert answer.status_code == 200, answer.text
        if stream:
            pieces = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
        else:
            pieces = [answer.json()]
        for choice in (choice for piece in pieces for choice in piece["choices"]):
            own = choices.setdefault(choice["index"], {"text": "", "rows": [], "reason": None})
            own["text"] += choice["text"]
            own["reason"] = choice["finish_reason"] or own["reason"]
            found = choice["logprobs"] or {
                "tokens": [],
                "token_logprobs": [],
                "top_logprobs": [],
                "text_offset": [],
            }
            own["rows"] += zip(
                *(found[k] for k in ("tokens", "token_logprobs", "top_logprobs", "text_offset")), strict=True
            )
        assert sorted(choices) == list(range(2 * len(prompts)))
        for index, choice in choices.items():
            text, ids = PROMPTS[index // 2], llm.encode(PROMPTS[index // 2])
            assert choice["text"].startswith(text)
            assert (choice["text"] == text) == (not max_tokens)
            assert choice["reason"] in ("length", "stop")
            rows = choice["rows"]
            assert len(ids) + bool(max_tokens) <= len(rows) <= len(ids) + max_tokens
            assert rows[0][1] is None
            assert rows[0][2] is None
            assert [row[1] for row in rows[1 : len(ids)]] == scores(llm, text)
            for i, (token, value, top, offset) in enumerate(rows[1:], 1):
                assert top[token] >= value
                assert 2 <= len(top) <= 3
                parts = [row[0] for row in rows[i - 1 : i + 1]]
                if not any(part.startswith("bytes:") for part in parts) and token[0] != "<":
                    assert choice["text"][offset : offset + len(token)] == token


def test_prompt_logprobs_of_both_endpoints(served, llm):
    body = {"model": NAME, "prompt_logprobs": 1, "max_tokens": 1}
    (choice,) = served.post("/v1/completions", body | {"prompt": PROMPTS[0]}).json()["choices"]
    ids = llm.encode(PROMPTS[0])
    found = choice["prompt_logprobs"]
    assert found[0] is None
    assert [row[str(token)]["logprob"] for row, token in zip(found[1:], ids[1:], strict=True)] == scores(
        llm, ids
    )
    assert {entry["rank"] for entry in found[1].values()} >= {1}
    assert all(set(entry) == {"logprob", "rank", "decoded_token"} for entry in found[1].values())
    answer = served.post(
        "/v1/chat/completions", body | {"messages": [{"role": "user", "content": "Hi"}]}
    ).json()
    assert len(answer["prompt_logprobs"]) == answer["usage"]["prompt_tokens"]
    assert answer["choices"][0]["logprobs"] is None


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"max_tokens": 0}, "max_tokens: got 0, expected at least 1 without echo"),
        ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs: not with stream"),
        ({"prompt_logprobs": 21}, "prompt_logprobs: input should be less than or equal to 20, got 21"),
        ({"prompt_logprobs": -1}, "prompt_logprobs: input should be greater than or equal to 0, got -1"),
    ],
)
def test_refusals(served, body, message):
    answer = served.post("/v1/completions", {"model": NAME, "prompt": "x"} | body)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == message
