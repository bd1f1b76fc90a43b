"""Inspect evaluates a small data set on our model: epochs differ, runs repeat, calls share one tree."""

from __future__ import annotations

import asyncio
import gc
import importlib
import json
import re
import threading
import tomllib
from pathlib import Path

import pytest

from tests.cli.reasoning_model import saved_reasoning_model
from tests.evals.tiny_text import save_text_model
from treeshare import LLM, SamplingParams
from treeshare.errors import ConfigError

inspect_ai = pytest.importorskip("inspect_ai")

pytestmark = [
    pytest.mark.filterwarnings(warning)
    for warning in (
        "ignore:The 'initial' parameter is deprecated:DeprecationWarning",  # tenacity, as Inspect calls it
        "ignore:Unclosed <MemoryObjectReceiveStream:ResourceWarning",  # Inspect's
    )
]

QUESTIONS = ["a b c", "d e", "f g h i"]  # words of one letter are tokens of their own
USER = {"max_tokens": 12, "temperature": 1.0, "seed": 7}


@pytest.fixture(scope="module", autouse=True)
def provider():
    """The module that the entry point names, loaded as Inspect loads it."""
    settings = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    yield importlib.import_module(settings["project"]["entry-points"]["inspect_ai"]["treeshare"])
    gc.collect()  # what Inspect leaves unclosed warns here, not in a later module's test


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_text_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def api(folder):
    from inspect_ai.model import get_model

    made = []

    def make(**arguments):
        options = {"model_path": str(folder), "dtype": "float32", **arguments}
        made.append(get_model("treeshare/tiny", memoize=False, **options))
        return made[-1]

    yield make
    for model in made:
        model.api.close()


def prompt_of(question):
    return f"[user]{question}[assistant]"


def evaluate(model, log_dir, **options):
    from inspect_ai import Task
    from inspect_ai.dataset import Sample
    from inspect_ai.scorer import includes
    from inspect_ai.solver import generate

    task = Task(
        dataset=[Sample(id=i, input=text, target="e") for i, text in enumerate(QUESTIONS)],
        solver=generate(),
        scorer=includes(),
    )
    (log,) = inspect_ai.eval(task, model=model, log_dir=str(log_dir), display="none", **(USER | options))
    assert log.status == "success", log.error
    return log


def answers(log):
    return {(sample.id, sample.epoch): sample.output.completion for sample in log.samples}


def by_question(log):
    return [
        sorted(text for (i, _), text in answers(log).items() if i == number)
        for number in range(len(QUESTIONS))
    ]


def ask(model, *calls, beside=()):
    """Outputs of calls, each a text and settings, that are made together, and ``beside`` other coroutines."""
    from inspect_ai.model import ChatMessageUser, GenerateConfig

    async def call(text, config, tools):
        messages = [ChatMessageUser(content=text)]
        return await model.api.generate(messages, tools, "none", GenerateConfig(**config))

    async def together():
        return await asyncio.gather(*(call(text, config, tools) for text, config, tools in calls), *beside)

    return asyncio.run(together())[: len(calls)]


def test_epochs(api, folder, tmp_path):
    """Equal calls get the completions that ``LLM`` numbers 0 to 3, whoever gets which."""
    model = api()
    log = evaluate(model, tmp_path, epochs=4)
    params = SamplingParams(n=4, **USER)
    expected = LLM(folder, dtype="float32").generate(
        [prompt_of(q) for q in QUESTIONS], params, use_tqdm=False
    )
    assert by_question(log) == [
        sorted(completion.text for completion in output.outputs) for output in expected
    ]
    assert len(set(by_question(log)[0])) > 1
    assert model.api._llm.stats.num_finished == 12
    again = evaluate(api(), tmp_path, epochs=4, max_connections=1)  # one after the other: the same set
    assert by_question(again) == by_question(log)


def test_choices(api, folder):
    config = {**USER, "num_choices": 3, "logprobs": True, "top_logprobs": 2}
    first, second = ask(api(), (QUESTIONS[0], config, []), (QUESTIONS[0], config, []))
    params = SamplingParams(n=6, logprobs=2, **USER)
    (expected,) = LLM(folder, dtype="float32").generate([prompt_of(QUESTIONS[0])], params, use_tqdm=False)
    choices = [*first.choices, *second.choices]
    assert [choice.message.text for choice in choices] == [completion.text for completion in expected.outputs]
    assert first.usage.input_tokens == len(expected.prompt_token_ids)
    assert first.usage.output_tokens == sum(len(completion.token_ids) for completion in expected.outputs[:3])
    for choice, completion in zip(choices, expected.outputs, strict=True):
        assert choice.stop_reason == {"stop": "stop", "length": "max_tokens"}[completion.finish_reason]
        got = choice.logprobs.content
        assert sum(at.logprob for at in got) == pytest.approx(completion.cumulative_logprob, rel=1e-6)
        assert all(len(at.top_logprobs) == 2 for at in got)
        assert all(at.top_logprobs[0].logprob >= at.top_logprobs[1].logprob for at in got)
        assert all(at.top_logprobs[0].logprob >= at.logprob for at in got)


def test_settings(api, folder):
    model, llm = api(seed=3), LLM(folder, dtype="float32", seed=3)
    (free,) = llm.generate([prompt_of(QUESTIONS[0])], SamplingParams(max_tokens=60), use_tqdm=False)
    stops = list(free.outputs[0].text[20:22])
    configs = [
        {"temperature": 0.0, "max_tokens": 10},
        {"temperature": 0.0, "max_tokens": 10, "frequency_penalty": 2.0, "presence_penalty": 1.0},
        {"top_k": 2, "top_p": 0.9, "max_tokens": 10},
        {"stop_seqs": stops, "max_tokens": 60},
        {"max_tokens": 5},
    ]
    outputs = ask(model, *((QUESTIONS[0], config, []) for config in configs))
    names = {"stop_seqs": "stop"}
    params = [SamplingParams(**{names.get(k, k): v for k, v in config.items()}) for config in configs]
    for output, param in zip(outputs, params, strict=True):
        (expected,) = llm.generate([prompt_of(QUESTIONS[0])], param, use_tqdm=False)
        assert output.completion == expected.outputs[0].text
        assert output.choices[0].logprobs is None
    assert len({output.completion for output in outputs}) == len(outputs)
    assert outputs[3].stop_reason == "stop"
    assert not set(stops) & set(outputs[3].completion)
    assert outputs[4].stop_reason == "max_tokens"


def test_a_response_schema(provider):
    """It becomes the grammar that ``LLM`` takes, whose answers other tests look at."""
    from inspect_ai.model import GenerateConfig, ResponseSchema
    from inspect_ai.util import JSONSchema

    schema = JSONSchema(
        type="object",
        properties={"a": JSONSchema(enum=["x", "yy"])},
        required=["a"],
        additionalProperties=False,
    )
    response = ResponseSchema(name="a", json_schema=schema)
    params = provider._params(GenerateConfig(response_schema=response, logit_bias={70: 2.0}))
    assert json.loads(params.structured_outputs.json) == {
        "type": "object",
        "properties": {"a": {"enum": ["x", "yy"]}},
        "required": ["a"],
        "additionalProperties": False,
    }
    assert params.logit_bias == {70: 2.0}


def test_calls_that_come_together_decode_together(api, provider, monkeypatch):
    """Fifty calls take as many steps as the longest of them: none is handed over before all have come.

    No clock decides, however busy the machine: the time for which calls are collected ends here when all have
    come, and the engine's thread goes on when all are handed over.
    """
    monkeypatch.setattr(provider, "_COLLECTING_S", 3600)
    model = api()
    commands, all_are_handed_over = model.api._llm._commands, threading.Event()
    commands.put(lambda: all_are_handed_over.wait(300))

    async def gates():
        while model.api._num_asked.total() < 50:
            await asyncio.sleep(0.01)
        assert commands._queue.qsize() <= 1  # the one above
        model.api._gate[1].set()
        while commands._queue.qsize() < 50:
            await asyncio.sleep(0.01)
        all_are_handed_over.set()

    config = {"max_tokens": 12, "temperature": 0.0}
    outputs = ask(model, *(("word " * i, config, []) for i in range(50)), beside=[gates()])
    stats = model.api._llm.stats
    assert stats.num_finished == 50
    assert stats.num_steps == max(output.usage.output_tokens for output in outputs) - 1


@pytest.mark.parametrize(
    ("config", "tools", "message"),
    [
        ({}, ["a tool"], "tools: got '1', expected none"),
        ({"best_of": 2}, [], "generate config: got 'best_of'"),
        ({"prompt_logprobs": 1}, [], "generate config: got 'prompt_logprobs'"),
        ({"verbosity": "low"}, [], "generate config: got 'verbosity'"),
        ({"reasoning_effort": "low"}, [], "reasoning_effort: got 'low', expected None: give the chat"),
        ({"reasoning_tokens": 9}, [], "thinking_token_budget: got 9, expected None: the model has no"),
        ({"temperature": -1.0}, [], "temperature: got -1.0"),
    ],
)
def test_what_is_refused(api, config, tools, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        ask(api(), (QUESTIONS[0], config, tools))


def test_media_are_refused(api):
    from inspect_ai.model import ChatMessageUser, ContentImage, ContentText, GenerateConfig

    content = [ContentText(text="What is it?"), ContentImage(image="data:image/png;base64,AA==")]
    with pytest.raises(ConfigError, match="input: got 'image', expected text"):
        asyncio.run(api().api.generate([ChatMessageUser(content=content)], [], "none", GenerateConfig()))


@pytest.mark.parametrize("kind", ["assistant", "tool"])
def test_calls_of_tools_in_a_conversation_are_refused(api, kind):
    """The template would not be shown them."""
    from inspect_ai.model import ChatMessageAssistant, ChatMessageTool, GenerateConfig
    from inspect_ai.tool import ToolCall

    call = ToolCall(id="1", function="f", arguments={})
    message = {
        "assistant": ChatMessageAssistant(content="", tool_calls=[call]),
        "tool": ChatMessageTool(content="5", tool_call_id="1"),
    }[kind]
    with pytest.raises(ConfigError, match="input: got 'calls of tools', expected none"):
        asyncio.run(api().api.generate([message], [], "none", GenerateConfig()))


def test_reasoning(api, tmp_path):
    """The template is shown what was thought before; of an answer it is a part of its own."""
    from inspect_ai.model import (
        ChatMessageAssistant,
        ChatMessageUser,
        ContentReasoning,
        ContentText,
        GenerateConfig,
    )

    folder = saved_reasoning_model(tmp_path)
    model = api(model_path=str(folder), chat_template_kwargs={"thinking": True})
    first = {"role": "user", "content": "Hi"}
    answered = {"role": "assistant", "content": "Hello", "reasoning_content": "A greeting.\nBriefly."}
    said = [ContentReasoning(reasoning=part) for part in answered["reasoning_content"].split("\n")]
    messages = [
        ChatMessageUser(content="Hi"),
        ChatMessageAssistant(content=[*said, ContentText(text="Hello")]),
        ChatMessageUser(content="Hi"),
    ]
    config = GenerateConfig(**USER, reasoning_tokens=4, num_choices=3)
    found = asyncio.run(model.api.generate(messages, [], "none", config))
    params = SamplingParams(n=3, thinking_token_budget=4, **USER)
    (expected,) = LLM(folder, dtype="float32").chat(
        [first, answered, first], params, use_tqdm=False, chat_template_kwargs={"thinking": True}
    )
    assert "<think>A greeting.\nBriefly.</think>Hello" in expected.prompt
    assert found.usage.input_tokens == len(expected.prompt_token_ids)
    for choice, output in zip(found.choices, expected.outputs, strict=True):
        assert [part.reasoning for part in choice.message.content[:1]] == [output.reasoning]
        assert choice.message.text == output.answer
    hidden = ChatMessageAssistant(content=[ContentReasoning(reasoning="x9", redacted=True)])
    with pytest.raises(ConfigError, match="input: got 'redacted reasoning', expected reasoning as text"):
        asyncio.run(model.api.generate([hidden], [], "none", config))


def test_looking_up_the_models_name_loads_nothing(provider):
    from inspect_ai.model import get_model_info

    assert get_model_info("treeshare/no-such-model") is None
    provider.TreeshareAPI("no-such-model", api_key="__model_info_lookup__").close()


def test_what_the_model_suggests(api, folder, provider, tmp_path):
    """Where neither task nor user says anything, the model's own file does, as for ``LLM``."""
    from inspect_ai.model import GenerateConfig

    (tmp_path / "generation_config.json").write_text('{"top_k": 1, "temperature": 0.5, "max_new_tokens": 6}')
    model = api(generation_config=str(tmp_path))
    (own, longer) = ask(model, (QUESTIONS[0], {}, []), (QUESTIONS[0], {"max_tokens": 9}, []))
    (greedy,) = LLM(folder, dtype="float32").generate(
        [prompt_of(QUESTIONS[0])], SamplingParams(temperature=0, max_tokens=6), use_tqdm=False
    )
    assert own.completion == greedy.outputs[0].text
    assert own.usage.output_tokens == 6
    assert longer.usage.output_tokens == 9
    params = provider._params(GenerateConfig(top_k=3, temperature=0.9), model.api._llm.llm.suggested)
    assert (params.top_k, params.temperature, params.max_tokens) == (3, 0.9, 6)


def test_arguments_of_inspects_other_models(api):
    options = {"trust_remote_code": False, "batch_size": 4, "device": "cpu", "do_sample": True}
    options |= {"revision": "main", "max_length": 64, "tensor_parallel_size": 1}
    model = api(**options)
    assert model.api._llm.max_model_len == 64


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"trust_remote_code": True}, "code from a model's folder is never run"),
        ({"do_sample": False}, "do_sample: got False, expected True; --temperature 0 is greedy"),
        (
            {"max_length": 64, "max_model_len": 64},
            "max_length: got 64, expected only one of max_length and max_model_len",
        ),
        ({"hidden_states": True}, "hidden_states: got True, expected False; they are not returned"),
    ],
)
def test_arguments_that_are_refused(api, arguments, message):
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        api(**arguments)
    assert "\n" not in str(caught.value)


def test_bits_are_those_of_generate(api, folder):
    config = {**USER, "num_choices": 3, "logprobs": True}
    (answer,) = ask(api(), (QUESTIONS[1], config, []))
    (expected,) = LLM(folder, dtype="float32").generate(
        [prompt_of(QUESTIONS[1])], SamplingParams(n=3, logprobs=0, **USER), use_tqdm=False
    )
    for choice, completion in zip(answer.choices, expected.outputs, strict=True):
        drawn = zip(completion.token_ids, completion.logprobs, strict=True)
        assert [at.logprob for at in choice.logprobs.content] == [at[token].logprob for token, at in drawn]


def test_wrong_arguments(api):
    with pytest.raises(ConfigError, match=re.escape("did you mean kv_budget_bytes?")):
        api(kv_budget=5)


def test_a_closed_model_says_so(api):
    model = api()
    model.api.close()
    with pytest.raises(ConfigError, match="AsyncLLM: it was closed"):
        ask(model, (QUESTIONS[0], {}, []))
