"""What a server tells without running its model."""

from __future__ import annotations

import importlib.metadata

import pytest


@pytest.fixture
def client(served):
    return served.http


@pytest.fixture
def ids(llm):
    return llm.encode("some words")


def test_tokens_of_a_text_and_back(client, llm, ids):
    answer = client.post("/tokenize", json={"prompt": "some words", "return_token_strs": True}).json()
    assert answer["tokens"] == ids
    assert answer["count"] == len(ids) == len(answer["token_strs"])
    assert answer["max_model_len"] == llm.max_model_len
    text = client.post("/detokenize", json={"tokens": ids}).json()["prompt"]
    assert text == llm.get_tokenizer().decode(ids)


def test_what_is_refused(client, llm):
    for body, param in (
        ({}, "prompt"),
        ({"prompt": "x", "messages": [{"role": "user", "content": "x"}]}, "prompt"),
        ({"prompt": 5}, "prompt"),
    ):
        answer = client.post("/tokenize", json=body)
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == param
    for tokens in ([llm.vocab_size], [-1], ["x"]):
        assert client.post("/detokenize", json={"tokens": tokens}).status_code == 400


def test_version_and_another_interface(client):
    assert client.get("/version").json() == {"version": importlib.metadata.version("treeshare")}
    answer = client.post("/v1/responses", json={})
    assert answer.status_code == 404
    assert "/v1/chat/completions" in answer.json()["error"]["message"]
