"""Masks, bias, grammars and logits processors through the engine: bits that depend on the request alone."""

from __future__ import annotations

import asyncio
import re

import pytest
import torch

from tests.cli.text_model import saved_text_model
from tests.engine.forests import assert_bits_are_the_requests_own, requests_for
from tests.kernel_levels import LEVELS, using_kernels
from treeshare.config import EngineConfig
from treeshare.engine.async_llm import AsyncLLM
from treeshare.engine.engine import Engine
from treeshare.engine.llm import LLM
from treeshare.errors import ConfigError
from treeshare.models import load_model
from treeshare.sampling import SamplingParams
from treeshare.sampling.logits_processor import AdapterLogitsProcessor, LogitsProcessor, MoveDirectionality

pytest.importorskip("llguidance", reason="llguidance is not installed")

SCHEMA = {
    "type": "object",
    "properties": {"a": {"enum": ["x", "yy"]}, "b": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["a", "b"],
    "additionalProperties": False,
}
CONSTRAINED = {
    "bias": {"logit_bias": {40: 6.0, 50: -100, 60: 5.5}},
    "allowed": {"allowed_token_ids": [40, 50, 60, 70, 1], "min_tokens": 3},
    "bad words": {"bad_words": ["a", "bc", " e"], "allowed_token_ids": list(range(66, 71))},
    "schema": {"structured_outputs": {"json": SCHEMA}},
    "pattern": {"structured_outputs": {"regex": r"[a-f]{3,9}(\.[01]+)?"}, "stop": ["cc"]},
    "choice": {"structured_outputs": {"choice": ["yes", "yes sir", "no"]}, "ignore_eos": True},
    "grammar and bias": {
        "structured_outputs": {"grammar": 'start: "(" start ")" start | ""'},
        "logit_bias": {11: 3},
        "repetition_penalty": 1.2,
        "top_p": 0.9,
    },
    "processors": {"extra_args": {"target": 45, "odd": True}},
}


class Target(AdapterLogitsProcessor):
    """Makes a token likely behind tokens that its own number says."""

    @classmethod
    def validate_params(cls, sampling_params):
        target = (sampling_params.extra_args or {}).get("target", 0)
        if not isinstance(target, int):
            raise ValueError(f"target: got {target!r}, expected a token")

    def is_argmax_invariant(self):
        return False

    def new_req_logits_processor(self, params):
        target = (params.extra_args or {}).get("target")
        if target is None:
            return None

        def function(prompt, output, row):
            row[(target + len(prompt) + sum(output)) % len(row)] += 6
            return row

        return function


class Odd(LogitsProcessor):
    """Keeps tokens of an odd id beside the likeliest, for rows that ask for it; looks at the whole batch."""

    def __init__(self, config, device, is_pin_memory):
        assert isinstance(config, EngineConfig)
        self.rows = {}

    def is_argmax_invariant(self):
        return True

    def update_state(self, batch_update):
        if batch_update is None:
            return
        for index in batch_update.removed:
            self.rows.pop(index, None)
        for index, params, prompt, output in batch_update.added:
            self.rows[index] = params.extra_args or {}
            assert isinstance(prompt, list)
            assert isinstance(output, list)
        for source, target, direction in batch_update.moved:
            assert direction == MoveDirectionality.UNIDIRECTIONAL
            self.rows[target] = self.rows.pop(source)
        assert sorted(self.rows) == list(range(batch_update.batch_size))

    def apply(self, logits):
        assert sorted(self.rows) == list(range(len(logits)))
        high = logits.amax(-1, keepdim=True)
        mask = torch.arange(logits.shape[1]) % 2 == 0
        chosen = torch.tensor([bool(self.rows[row].get("odd")) for row in range(len(logits))])
        return logits.masked_fill(mask & (logits < high) & chosen[:, None], -torch.inf)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return saved_text_model(tmp_path_factory.mktemp("constrained"))


def prompts():
    base = [5, 9, 20, 33, 41, 7, 8] * 6
    return [base, base[:20], [*base[:31], 99, 100], [200, 201]]


def bits(completion):
    return (completion.token_ids, completion.text, completion.finish_reason, completion.cumulative_logprob)


def run(engine, requests):
    found = {(c.request_index, c.completion_index): bits(c) for c in engine.run(requests)}
    engine.clear()
    return found


def is_slow(name, level):
    """By default a grammar and processors; all others, and torch alone, take longer."""
    return level == "none" or name not in ("schema", "processors")


CASES = [
    pytest.param(name, level, marks=[pytest.mark.slow] * is_slow(name, level))
    for name in CONSTRAINED
    for level in (*LEVELS[:1], "none")
]


@pytest.mark.parametrize(("name", "level"), CASES)
def test_bits_are_the_requests_own(folder, name, level):
    """Alone, resumed, with more completions, without lazy divergence, few rows, rows taken away: the same."""
    params = SamplingParams(n=4, temperature=1.0, max_tokens=12, **CONSTRAINED[name])
    processors = [Target, f"{__name__}:Odd"] if name == "processors" else ()
    with using_kernels(level):
        loaded = load_model(folder, "float32")

        def engine(**config):
            config = EngineConfig(page_size=16, **config)
            return Engine(loaded, config, logits_processors=processors, check_invariants=True)

        requests = requests_for(prompts()[1:], params)
        others = requests_for(prompts()[:2], SamplingParams(n=2, max_tokens=9), seed=3)
        assert_bits_are_the_requests_own(engine, requests, others, run)


@pytest.mark.parametrize("name", CONSTRAINED)
def test_completions_are_what_was_asked_for(folder, name):
    """The positive control: without the parameter they are not."""
    import json

    llm = LLM(folder, logits_processors=[Target, Odd] if name == "processors" else ())
    params = SamplingParams(n=16, temperature=1.0, max_tokens=32, **CONSTRAINED[name])
    rest = {"allowed_token_ids": CONSTRAINED[name]["allowed_token_ids"]} if name == "bad words" else {}
    free = SamplingParams(n=16, temperature=1.0, max_tokens=32, **rest)
    ids = [{"prompt_token_ids": prompt} for prompt in prompts()]
    found, other = (
        [c for output in llm.generate(ids, p, use_tqdm=False) for c in output.outputs] for p in (params, free)
    )
    checks = {
        "bias": lambda c: (
            50 not in c.token_ids and (40 in c.token_ids or 60 in c.token_ids or 1 in c.token_ids)
        ),
        "allowed": lambda c: set(c.token_ids) <= {40, 50, 60, 70, 1} and 1 not in c.token_ids[:3],
        "bad words": lambda c: "bc" not in c.text and "a" not in c.text,
        "schema": lambda c: json.loads(c.text)["a"] in ("x", "yy") and 0 <= json.loads(c.text)["b"] <= 99,
        "pattern": lambda c: c.stop_reason == "cc" or re.fullmatch(r"[a-f]{3,9}(\.[01]+)?", c.text),
        "choice": lambda c: c.text in ("yes", "yes sir", "no"),
        "grammar and bias": lambda c: c.text.count("(") == c.text.count(")"),
        "processors": lambda c: sum(token % 2 for token in c.token_ids) > 0.6 * len(c.token_ids),
    }
    whole = [c for c in found if c.finish_reason == "stop" or "structured_outputs" not in CONSTRAINED[name]]
    assert len(whole) > 0.5 * len(found)

    def holds(completion):
        try:
            return bool(checks[name](completion))
        except (ValueError, TypeError, KeyError):
            return False

    share = 0.8 if name in ("bias", "processors") else 1
    assert sum(map(holds, whole)) >= share * len(whole)
    assert sum(map(holds, other)) < 0.75 * share * len(other)


def test_a_grammar_ends_its_completion(folder):
    llm = LLM(folder)

    def outputs(**values):
        params = SamplingParams(n=8, temperature=1.0, **values)
        return llm.generate({"prompt_token_ids": [5, 6]}, params, use_tqdm=False)[0].outputs

    four = {"structured_outputs": {"regex": "[ab]{4}"}}
    for more in ({}, {"min_tokens": 7, "max_tokens": 9}, {"ignore_eos": True}, {"max_tokens": 4}):
        for completion in outputs(**{"max_tokens": 9} | more | four):
            assert re.fullmatch("[ab]{4}", completion.text)
            assert (completion.finish_reason, completion.stop_reason) == ("stop", None)
            assert len(completion.token_ids) == 4
    for completion in outputs(max_tokens=3, **four):
        assert (completion.finish_reason, len(completion.text)) == ("length", 3)
    for completion in outputs(max_tokens=9, stop="b", structured_outputs={"regex": "[ab]{9}"}):
        assert completion.text == "a" * len(completion.text)
    for completion in outputs(max_tokens=30, ignore_eos=True, structured_outputs={"regex": "a*"}):
        assert completion.text == "a" * len(completion.text)
    streamed = {}
    params = SamplingParams(n=8, temperature=1.0, max_tokens=9, **four)
    for output in llm.stream({"prompt_token_ids": [5, 6]}, params, tokens=True):
        if hasattr(output, "text"):
            streamed[output.index] = streamed.get(output.index, "") + output.text
    assert [streamed[i] for i in range(8)] == [c.text for c in outputs(max_tokens=9, **four)]


def test_masks_are_shared(folder):
    """Completions that agree, be they of other prompts, have one mask."""
    llm = LLM(folder)
    params = SamplingParams(n=16, temperature=0, max_tokens=40, structured_outputs={"regex": "[ab]{20}"})
    llm.generate([{"prompt_token_ids": [5, 6]}], params, use_tqdm=False)
    assert llm.stats.num_tokens == 16 * 20
    assert llm.stats.num_masks <= 21
    forced = SamplingParams(n=16, temperature=1.0, structured_outputs={"choice": ["abcdefgh"]}, max_tokens=40)
    llm.generate([{"prompt_token_ids": ids} for ids in prompts()], forced, use_tqdm=False)
    assert llm.stats.num_masks <= 10


REFUSED = [
    ({"logit_bias": {259: 1}}, "logit_bias: got 259, expected token ids in [0, 259)"),
    ({"allowed_token_ids": [5, 300]}, "allowed_token_ids: got 300, expected token ids in [0, 259)"),
    (
        {"bad_words": ["ab"] + [chr(65 + i % 26) * (i + 1) for i in range(200)]},
        "bad_words: got '201 spellings of",
    ),
    ({"structured_outputs": {"regex": "("}}, "structured_outputs: regex: unclosed group"),
    (
        {"structured_outputs": {"regex": "[ab]"}, "allowed_token_ids": [5]},
        "leave no token to draw as the first one",
    ),
    ({"allowed_token_ids": [1], "min_tokens": 2}, "leave no token to draw as the first one"),
    ({"extra_args": {"target": "x"}}, "logits_processors: Target: target: got 'x', expected a token"),
]


@pytest.mark.parametrize(("values", "message"), REFUSED, ids=lambda value: str(value)[:30])
def test_what_is_refused_before_anything_runs(folder, values, message):
    llm = LLM(folder, logits_processors=[Target])
    with pytest.raises(ConfigError) as raised:
        llm.generate({"prompt_token_ids": [5]}, SamplingParams(**values), use_tqdm=False)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert llm.engine.is_idle


def test_what_needs_a_tokenizer(model_dir):
    llm = LLM(model_dir("llama"))
    for values in ({"bad_words": ["a"]}, {"structured_outputs": {"regex": "a"}}):
        with pytest.raises(ConfigError, match="the model has no tokenizer"):
            llm.generate({"prompt_token_ids": [5]}, SamplingParams(**values), use_tqdm=False)


def test_a_dead_end_is_its_own_requests(folder):
    """Behind some tokens nothing may come: that request fails by name, those beside it go on."""

    async def both():
        async with AsyncLLM(folder) as live:
            dead = SamplingParams(max_tokens=9, structured_outputs={"regex": "abc"}, bad_words=["b"])
            fine = SamplingParams(max_tokens=9, structured_outputs={"regex": "abc"})

            async def texts(params):
                outputs = live.generate({"prompt_token_ids": [5]}, params)
                return [output.completion.text async for output in outputs]

            return await asyncio.gather(texts(dead), texts(fine), return_exceptions=True)

    failed, answered = asyncio.run(both())
    assert isinstance(failed, ConfigError)
    assert "leave no token to draw after 1 tokens" in str(failed)
    assert answered == ["abc"]


class Broken(LogitsProcessor):
    def is_argmax_invariant(self):
        return False

    def update_state(self, batch_update):
        pass

    def apply(self, logits):
        return logits[:, :-1]


class Unmakable(Broken):
    def __init__(self, *_):
        raise RuntimeError("no licence\nat all")


@pytest.mark.parametrize(
    ("processors", "message"),
    [
        ("x", "logits_processors: got 'x', expected a list of subclasses of LogitsProcessor"),
        ([5], "logits_processors: got 5, expected subclasses of LogitsProcessor"),
        ([dict], "expected subclasses of LogitsProcessor"),
        (
            ["no_such_module:X"],
            "logits_processors: 'no_such_module:X': ModuleNotFoundError: No module named 'no_such",
        ),
        (["math:nothing"], "logits_processors: 'math:nothing':"),
        ([Unmakable], "logits_processors: cannot make Unmakable: no licence"),
        ([LogitsProcessor], "logits_processors: cannot make LogitsProcessor"),
    ],
    ids=str,
)
def test_mistakes_with_processors(folder, processors, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        LLM(folder, logits_processors=processors)


def test_a_processor_that_returns_something_else(folder):
    llm = LLM(folder, logits_processors=[Broken])
    with pytest.raises(ValueError, match=r"logits processor: got \(1, 259\), returned \(1, 258\)"):
        llm.generate({"prompt_token_ids": [5]}, use_tqdm=False)


def test_processors_without_an_effect_change_no_token(folder):
    class Idle(Broken):
        def apply(self, logits):
            return logits

    class IdleAfter(Idle):
        def is_argmax_invariant(self):
            return True

    params = SamplingParams(
        n=6, temperature=0.9, top_p=0.9, min_p=0.02, top_k=60, max_tokens=12, ignore_eos=True
    )
    ids = [{"prompt_token_ids": prompt} for prompt in prompts()]
    with using_kernels("none"):
        plain, hooked = (
            [o.token_ids for output in LLM(folder, logits_processors=p).generate(ids, params, use_tqdm=False)
             for o in output.outputs]
            for p in ((), [Idle, IdleAfter])
        )  # fmt: skip
    assert plain == hooked
