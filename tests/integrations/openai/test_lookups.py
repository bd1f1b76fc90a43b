"""What a server tells without running its model."""

from __future__ import annotations

import importlib.metadata

import pytest

from tests.integrations.openai.serving import NAME


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


def test_a_line_for_each_request_without_its_words(served, caplog):
    with caplog.at_level("INFO", logger="treeshare.access"):
        served.post("/v1/completions", {"model": NAME, "prompt": "secret", "max_tokens": 1})
        served.post("/v1/completions", {"model": "another", "prompt": "secret"})
    lines = [record.getMessage() for record in caplog.records if record.name == "treeshare.access"]
    assert lines == ["POST /v1/completions 200", "POST /v1/completions 404"]
