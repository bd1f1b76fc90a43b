"""Arguments of wrong types: one line that names the argument, wherever they can be given; nothing has run."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.integrations.openai.serving import saved_chat_model
from treeshare import LLM, AsyncLLM, SamplingParams
from treeshare.errors import ConfigError, TreeshareError

PARAMS = SamplingParams(max_tokens=2, ignore_eos=True)


class Stubborn:
    """Somebody's object, which raises wherever it is looked at."""

    def __iter__(self):
        raise RuntimeError("no")

    def __len__(self):
        raise RuntimeError("no")


GOOD = {
    "text": "ab",
    "texts": ["ab", "c"],
    "a mapping": {"prompt": "ab"},
    "ids": [5, 6],
    "a tuple of ids": (5, 6),
    "a range": range(5, 8),
    "an array": np.array([5, 6]),
    "rows of an array": np.array([[5, 6], [7, 8]]),
    "a tensor": torch.tensor([5, 6]),
    "a mapping with an array": {"prompt_token_ids": np.array([5, 6])},
    "an iterator of prompts": lambda: iter([[5, 6], "a"]),
    "no prompts": [],
}

BAD = [
    None, 5, 5.5, True, b"a", [b"a"], object(), Stubborn(), [Stubborn()], [[1.5]], [["a"]], [[None]], [[[1]]],
    [[]],
    {}, {"prompt": None}, {"prompt": 5}, {"prompt_token_ids": None}, {"prompt_token_ids": 5},
    {"prompt_token_ids": "12"}, {"prompt_token_ids": {"a": 1}}, {"prompt_token_ids": [True]}, {5: 5},
    "\ud800", ["a", "x\udfff"], {"prompt": "\ud800"}, [2**40], [[2**80]], [[10**5000]], [-1], [10**6], "",
    np.array(5), np.array([1.5]), np.array(["a"]), np.array([True]), torch.tensor([1.5]), torch.tensor(5),
    [5, "a"], ["a", 5], [5, None], [5, 6.0], bytearray(b"abc"), memoryview(b"abc"), {"a", 5},
]  # fmt: skip

WRONG_PARAMS = [
    5, "x", b"", 1.5, True, False, 0, {}, {"n": 2}, [None], [{"n": 1}], [PARAMS, PARAMS], [], [[PARAMS]],
    {"a": PARAMS}, SamplingParams, object(), Stubborn(),
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return saved_chat_model(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def llm(folder):
    return LLM(folder, dtype="float32")


@pytest.fixture(scope="module")
def served(folder):
    llm = AsyncLLM(folder, dtype="float32")
    yield llm
    llm.close()


def ask(served, prompt, params=PARAMS, **options):
    async def all_of_it():
        return [event async for event in served.generate(prompt, params, **options)]

    return asyncio.run(all_of_it())


def refusal(call):
    """Whether a call is refused in one line that is not too long; False if it is not refused."""
    try:
        call()
    except TreeshareError as error:
        return "\n" not in str(error) and 10 < len(str(error)) < 400
    return False


@pytest.mark.parametrize("name", GOOD)
def test_prompts_in_every_form(llm, name):
    given = GOOD[name]() if callable(GOOD[name]) else GOOD[name]
    outputs = llm.generate(given, PARAMS, use_tqdm=False)
    assert all(len(output.outputs[0].token_ids) == 2 for output in outputs)
    assert bool(outputs) == (name != "no prompts")


@pytest.mark.parametrize("prompt", BAD, ids=lambda value: f"{type(value).__name__}")
def test_what_is_no_prompt(llm, served, prompt):
    ways = {
        "generate": lambda: llm.generate(prompt, PARAMS, use_tqdm=False),
        "stream": lambda: list(llm.stream(prompt, PARAMS)),
        "search": lambda: llm.search(prompt, max_tokens=3).close(),
        "AsyncLLM": lambda: ask(served, prompt),
        "score": lambda: llm.score(prompt, use_tqdm=False),
        "score, a pair": lambda: llm.score([prompt], use_tqdm=False),
        "score, a context": lambda: llm.score([(prompt, [5])], use_tqdm=False),
        "update_weights": lambda: llm.update_weights(prompt),
    }
    if type(prompt) is dict and not prompt:  # no weights
        del ways["update_weights"]
    if type(prompt) is str and not prompt:  # no characters, no pairs
        assert refusal(ways.pop("score"))
    if isinstance(prompt, (bytearray, memoryview)):  # an array of integers
        del ways["score, a context"]
    found = {way: refusal(call) for way, call in ways.items()}
    assert found == dict.fromkeys(found, True)
    assert llm.engine.is_idle


@pytest.mark.parametrize("params", WRONG_PARAMS, ids=lambda value: f"{type(value).__name__}")
def test_what_is_no_sampling_params(llm, served, params):
    ways = {
        "generate": lambda: llm.generate(["a"], params, use_tqdm=False),
        "stream": lambda: list(llm.stream(["a"], params)),
        "chat": lambda: llm.chat([{"role": "user", "content": "a"}], params, use_tqdm=False),
        "request": lambda: llm.request("a", params),
        "AsyncLLM": lambda: ask(served, "a", params),
    }
    found = {way: refusal(call) for way, call in ways.items()}
    assert found == dict.fromkeys(ways, True)


@pytest.mark.parametrize(
    "value",
    [None, -1, 1.5, "x", True, [1], Stubborn()],
    ids=lambda value: "stubborn" if isinstance(value, Stubborn) else repr(value),
)
def test_numbers_and_branches(llm, served, value):
    with llm.search("ab", max_tokens=3) as search:
        ways = {
            "max_tokens": lambda: llm.search("a", max_tokens=value),
            "first_index": lambda: ask(served, "a", first_index=value),
            "fork": lambda: search.fork(value),
            "fork, n": lambda: search.fork(search.root, value),
            "extend": lambda: search.extend(value),
            "extend, a step": lambda: search.extend([value]),
            "extend, a branch": lambda: search.extend([(value, 5)]),
            "extend, a token": lambda: search.extend([(search.root, value)]),
        }
        found = {way: refusal(call) for way, call in ways.items()}
        assert found == dict.fromkeys(ways, True)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda llm: llm.generate(None), "prompts: got None, expected text, "),
        (lambda llm: llm.generate("\ud800"), r"prompt: got 'U\+D800 at character 0', expected text without"),
        (lambda llm: llm.generate("a", {"n": 2}), "sampling_params: got 'dict', expected SamplingParams, or"),
        (lambda llm: llm.generate("a", [None]), "sampling_params: got 'a list with None', expected"),
        (lambda llm: llm.generate("a", on_completion=5), "on_completion: got 'int', expected a function"),
        (lambda llm: llm.score([[5]]), r"pairs\[0\]: got 1, expected a context and a continuation"),
        (lambda llm: llm.encode(5), "prompt: got 'int', expected text"),
        (lambda llm: SamplingParams.from_dict(5), "sampling parameters: got 'int', expected a mapping"),
    ],
)
def test_messages(llm, call, message):
    with pytest.raises(ConfigError, match=f"^{message}"):
        call(llm)


def test_all_of_the_vocabulary(llm):
    """As in vLLM, -1 asks for the log-probabilities of all tokens: together they are the distribution."""
    size, params = llm.vocab_size, SamplingParams(max_tokens=3, ignore_eos=True, logprobs=-1)
    (output,) = llm.generate(["ab"], params, use_tqdm=False)
    for entries in output.outputs[0].logprobs:
        assert sorted(entries) == list(range(size))
        assert min(entry.rank for entry in entries.values()) == 1
        assert np.exp([entry.logprob for entry in entries.values()]).sum() == pytest.approx(1, rel=1e-5)
    (same,) = llm.generate(["ab"], replace(params, logprobs=size), use_tqdm=False)
    assert same.outputs[0].logprobs == output.outputs[0].logprobs
