"""Every place that makes a completion's text: it continues the prompt, by the tokenizer's own decoding.

The model is random: it says any token of the vocabulary, bytes, special tokens and unknown ones among them.
"""

from __future__ import annotations

import asyncio
import json

import pytest
import transformers
from starlette.testclient import TestClient

from tests.models.tiny import make_model
from tests.text.kinds import ADDED, DETOKENIZERS, KINDS, ids_of
from treeshare import LLM, AsyncLLM, SamplingParams
from treeshare.engine.streaming import TokenOutput
from treeshare.integrations.openai.server import create_app
from treeshare.integrations.openai.server_options import ServerOptions

NAMES = [
    "llama2",
    *(pytest.param(n, marks=pytest.mark.slow) for n in ("metaspace first", "byte level", "words, cleaned")),
]
PROMPTS = {  # the last one ends with special tokens, the one before is nothing else
    "llama2": (["<s>", "\u2581a", "b"], ["<0xE2>", "<0x82>", "<0xAC>"], ["<s>"], ["a", "<|end|>", "<s>"]),
    "metaspace first": (["<s>", "\u2581a"], ["\u2581"], ["<s>"], ["a", "<|end|>", "<s>"]),
    "byte level": (["a"], ["\u0120", "\u0120"], ["<s>"], ["a", "<|end|>", "<s>"]),
    "words, cleaned": (["it"], ["a", "."], ["<s>"], ["a", "<|end|>", "<s>"]),
}
TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"


@pytest.fixture(scope="module", params=NAMES)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def folder(kind, tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    tokenizer = KINDS[kind]
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer) + 4,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.eos_token_id,
        initializer_range=0.05,
    )
    make_model(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    if kind in ("llama2", "byte level"):
        (path / "chat_template.jinja").write_text(TEMPLATE)
    return path


@pytest.fixture(scope="module")
def llm(folder):
    return LLM(folder, dtype="float32")


@pytest.fixture(scope="module")
def prompts(kind):
    return [ids_of(KINDS[kind], pieces) for pieces in PROMPTS[kind]]


def right(kind, prompt, completion, skip=True):
    """The text by the tokenizer alone; the last token of a stopped completion is end-of-sequence."""
    decode = lambda ids: KINDS[kind].decode(ids, skip_special_tokens=skip)  # noqa: E731
    ids = completion.token_ids[: -1 if completion.finish_reason == "stop" else None]
    whole, head = decode([*prompt, *ids]), decode(prompt)
    if not whole.startswith(
        head
    ):  # bytes of the completion are joined to the prompt's, and are no characters
        assert "\ufffd" in whole or "cleaned" in kind
        return None
    return whole[len(head) :]


@pytest.mark.parametrize("skip", [True, False])
def test_generate_and_stream(kind, llm, prompts, skip):
    params = SamplingParams(n=12, max_tokens=40, seed=3, skip_special_tokens=skip, logprobs=2)
    texts, num_checked, num_tokens = {}, 0, 0
    for output in llm.generate(prompts, params, use_tqdm=False):
        for completion in output.outputs:
            expected = right(kind, output.prompt_token_ids, completion, skip)
            texts[output.request_id, completion.index] = completion.text
            num_checked += expected is not None
            assert expected is None or completion.text == expected
            shown = "".join(
                at[token].decoded_token
                for token, at in zip(completion.token_ids, completion.logprobs, strict=True)
                if not (skip and token in DETOKENIZERS[kind].special_ids)
            )
            if "\ufffd" not in shown and "cleaned" not in kind and completion.finish_reason == "length":
                assert shown == completion.text
                num_tokens += 1
    assert num_checked > 30
    assert num_tokens > 0 or kind != "metaspace first"
    pieces = dict.fromkeys(texts, "")
    for event in llm.stream(prompts, params, tokens=True):
        if isinstance(event, TokenOutput):
            pieces[event.request_id, event.index] += event.text
    assert pieces == texts


@pytest.mark.slow
def test_a_stream_with_stops(kind, llm, prompts):
    """Nothing comes out that a stop string cuts, be it plain, special, or both."""
    free = llm.generate(prompts, SamplingParams(n=12, max_tokens=40, seed=3), use_tqdm=False)
    texts = [completion.text for output in free for completion in output.outputs]
    long = [text for text in texts if len(text) > 12]
    stops = [long[0][4:7], long[1][9:11], long[2][3:4] + "<|end|>", "<|end|>", ADDED, "<|end|>" + long[3][:1]]
    num_cut = 0
    for stop in stops:
        for include in (True, False):
            params = SamplingParams(
                n=6, max_tokens=40, seed=3, stop=[stop, "never there"], include_stop_str_in_output=include
            )
            pieces, finished = {}, {}
            for event in llm.stream(prompts, params, tokens=True):
                if isinstance(event, TokenOutput):
                    key = event.request_id, event.index
                    pieces[key] = pieces.get(key, "") + event.text
                else:
                    finished[event.request_id, event.completion.index] = event.completion
            assert pieces == {key: completion.text for key, completion in finished.items()}
            assert all(completion.text.count(stop) <= include for completion in finished.values())
            num_cut += sum(completion.stop_reason == stop for completion in finished.values())
    assert num_cut > 5


def test_server(kind, folder, llm, prompts):
    async def run():
        async with AsyncLLM(folder, dtype="float32") as running:
            client = TestClient(create_app(running, ServerOptions(names=("m",))))
            return await asyncio.to_thread(lambda: [ask(client, body) for body in bodies])

    def ask(client, body):
        chat = "messages" in body
        url = "/v1/chat/completions" if chat else "/v1/completions"
        whole = client.post(url, json=body).json()["choices"][0]
        events = client.post(url, json=body | {"stream": True}).text.split("\n\n")
        parts = [json.loads(event[6:])["choices"] for event in events if event.startswith("data: {")]
        parts = [choice[0] for choice in parts if choice]
        if chat:
            return (
                whole["message"]["content"],
                "".join(part["delta"].get("content", "") for part in parts),
                [],
                [],
            )
        rows = [part["logprobs"] for part in parts if part["logprobs"]]
        places = [place for row in rows for place in row["text_offset"]]
        assert places == whole["logprobs"]["text_offset"]
        assert [t for row in rows for t in row["tokens"]] == whole["logprobs"]["tokens"]
        return whole["text"], "".join(part["text"] for part in parts), whole["logprobs"]["tokens"], places

    common = {"model": "m", "max_tokens": 24, "seed": 3}
    bodies = [
        common | {"prompt": prompt, "skip_special_tokens": skip, "logprobs": 1}
        for prompt in prompts[1:3]
        for skip in (True, False)
    ]
    has_chat = kind in ("llama2", "byte level")
    bodies += [common | {"messages": [{"role": "user", "content": "ab"}]}] if has_chat else []
    answers = asyncio.run(run())
    num_placed = 0
    for body, (text, streamed, tokens, places) in zip(bodies, answers, strict=True):
        skip = body.get("skip_special_tokens", True)
        params = SamplingParams(max_tokens=24, seed=3, skip_special_tokens=skip)
        prompt = body["prompt"] if "prompt" in body else KINDS[kind].encode("ab", add_special_tokens=False)
        (completion,) = llm.generate([prompt], params, use_tqdm=False)[0].outputs
        assert text == streamed == completion.text
        known = DETOKENIZERS[kind].byte_pieces
        whole = [
            token not in known and "bytes:" not in t
            for token, t in zip(completion.token_ids, tokens, strict=False)
        ]
        for i in range(len(tokens) - 1):  # the last one may be end-of-sequence, which the text lacks
            if not skip and whole[i] and "cleaned" not in kind:
                num_placed += 1
                assert text.startswith(tokens[i], places[i + 1] - len(tokens[i]))
    assert num_placed or "cleaned" in kind


def test_journal(kind, llm, prompts, tmp_path):
    """What a run writes, with its own requests."""
    from treeshare.runs import RunDirectory
    from treeshare.runs.sampling_run import make_manifest, make_requests, sample_into

    names, params = [f"p{i}" for i in range(len(prompts))], SamplingParams(n=4, max_tokens=30)
    manifest = make_manifest(llm, task="own", data="", task_ids=names, prompts=prompts, params=params)
    with RunDirectory(tmp_path / "run", manifest) as directory:
        sample_into(directory, llm, names, make_requests(names, prompts, params, directory))
    rows = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().split("\n") if line]
    assert len(rows) == 4 * len(prompts)
    detokenizer = llm.loaded.detokenizer
    from treeshare.text import Continuation

    for row in rows:
        prompt = prompts[names.index(row["task_id"])]
        ids = row["token_ids"][: -1 if row["finish_reason"] == "stop" else None]
        assert row["completion"] == Continuation(detokenizer, prompt, skip_special_tokens=True).text(ids)


@pytest.mark.slow
def test_lm_eval(kind, folder):
    """As its hf model: an answer decoded alone, ended by its own rule."""
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from treeshare.integrations.lm_eval import TreeshareLM

    untils = (
        ["Question:", "</s>", "<|end|>"],
        ["a"],
        [" b"],
        ["end|"],
        ["b<|end|>"],
        [ADDED],
        ["\ufffd"],
        ["\n"],
    )
    requests = [
        Instance(
            request_type="generate_until",
            doc={},
            arguments=(context, {"until": list(until), "do_sample": False, "max_gen_toks": 24}),
            idx=0,
        )
        for until in untils
        for context in ("a", "ab", "a.", "b")
    ]
    answers = {}
    for name, model, more in (("hf", HFLM, {"device": "cpu"}), ("ours", TreeshareLM, {})):
        made = model(pretrained=str(folder), dtype="float32", batch_size=1, **more)
        answers[name] = made.generate_until(requests, disable_tqdm=True)
    assert answers["ours"] == answers["hf"]
