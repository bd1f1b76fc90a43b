"""Chat templates wherever conversations become prompts: transformers' own text; refusals of one line."""

from __future__ import annotations

import asyncio
import logging
from types import SimpleNamespace

import pytest
import transformers
from inspect_ai.model import ChatMessageAssistant, ChatMessageSystem, ChatMessageUser
from tokenizers import processors

from tests.cli.text_model import byte_tokenizer, saved_text_model
from tests.integrations.chat_templates import BROKEN, CHATML, LLAMA_3, QWEN_3, QWEN_25, TEMPLATES
from treeshare import LLM, AsyncLLM, SamplingParams
from treeshare.engine.chat import ChatOptions, check_messages
from treeshare.engine.prompts import PromptEncoder
from treeshare.errors import ConfigError, TreeshareError
from treeshare.evals.problem import Problem
from treeshare.evals.prompts import PromptOptions, encode_prompts
from treeshare.integrations.inspect_ai import TreeshareAPI
from treeshare.integrations.lm_eval.text import TextRules
from treeshare.integrations.openai.job import make_job
from treeshare.integrations.openai.schema import CHAT, ApiError, parse_body
from treeshare.tree import FewShotPrompts

USER = {"role": "user", "content": "Where is Oslo? "}
ANSWER = {"role": "assistant", "content": "<think>\nNorth.\n</think>\n\nIn Norway."}
SYSTEM = {"role": "system", "content": "Be short."}
CONVERSATIONS = [[USER], [USER, ANSWER, USER], [SYSTEM, USER], [SYSTEM, USER, ANSWER, USER]]

REFUSING = (
    "{% if messages[0].role != 'user' or messages | length != 1 %}"
    "{{ raise_exception('only\nyou') }}{% endif %}x"
)

PLAIN_TASK = SimpleNamespace(
    num_shots=0, chat_num_shots=None, chat_instruction="", chat_system="", chat_prefill=""
)
"""What prompts read of a task that asks for nothing."""


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    return LLM(saved_text_model(tmp_path_factory.mktemp("model")), dtype="float32")


def expected_ids(tokenizer, messages, template, kwargs):
    """transformers' own text, tokenised without special tokens; None where the template refuses."""
    try:
        text = tokenizer.apply_chat_template(
            messages, chat_template=template, tokenize=False, add_generation_prompt=True, **kwargs
        )
    except Exception:
        return None
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def by_chat(llm, messages, template, kwargs):
    params = SamplingParams(max_tokens=1, temperature=0)
    (output,) = llm.chat(
        messages, params, use_tqdm=False, chat_template=template, chat_template_kwargs=kwargs
    )
    return output.prompt_token_ids


def by_server(llm, messages, template, kwargs):
    body = parse_body(CHAT, {"messages": messages, "max_tokens": 1, "chat_template_kwargs": kwargs})
    job = make_job(llm, body, model="m", seed=0, chat=ChatOptions(chat_template=template))
    return job.requests[0].prompt_token_ids


def by_default_of_the_server(llm, messages, template, kwargs):
    body = parse_body(CHAT, {"messages": messages, "max_tokens": 1})
    options = ChatOptions(chat_template=template, chat_template_kwargs=kwargs)
    return make_job(llm, body, model="m", seed=0, chat=options).requests[0].prompt_token_ids


def by_inspect(llm, messages, template, kwargs):
    kinds = {"system": ChatMessageSystem, "user": ChatMessageUser, "assistant": ChatMessageAssistant}
    api = TreeshareAPI("m", model_path=llm, chat_template=template, chat_template_kwargs=kwargs)
    try:
        return api._prompt([kinds[message["role"]](content=message["content"]) for message in messages])
    finally:
        api.close()


def by_lm_eval(llm, messages, template, kwargs):
    rules = TextRules(with_template(llm, template), "m", chat_template_args=kwargs)
    text = rules.render_chat(messages, add_generation_prompt=True)
    return rules.encode(text, add_special_tokens=False)


def by_sample(llm, messages, template, kwargs):
    """Only one user message, as tasks have it."""
    (message,) = messages
    problem = Problem(task_id="p", prompt=message["content"])
    built = FewShotPrompts(problems=[problem.prompt], shots_by_problem=[[]], separator="")
    task = PLAIN_TASK
    tokenizer = with_template(llm, template)
    (ids,) = encode_prompts(task, built, tokenizer, chat=True, chat_template_kwargs=kwargs)
    return ids


def with_template(llm, template):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


BEGUN = {**TEMPLATES, "ChatML of SmolLM2": CHATML, "Qwen 2.5": QWEN_25}


@pytest.mark.parametrize("name", BEGUN)
def test_a_reply_that_the_task_begins_goes_on_where_transformers_goes_on(name):
    """But for white space at its end, which some templates strip, and a begun reply keeps."""
    tokenizer = with_template(None, BEGUN[name])
    begin = "Below is a function:\n```python\n"
    task = SimpleNamespace(**{**vars(PLAIN_TASK), "chat_prefill": begin})
    built = FewShotPrompts(problems=["Add."], shots_by_problem=[[]], separator="")
    (ids,) = encode_prompts(task, built, tokenizer, chat=True)
    text = tokenizer.decode(ids)
    messages = [{"role": "user", "content": "Add."}, {"role": "assistant", "content": begin}]
    expected = tokenizer.apply_chat_template(messages, tokenize=False, continue_final_message=True)
    assert text.endswith(begin)
    assert text.rstrip() == expected.rstrip()
    asked = tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
    assert text.startswith(asked.rstrip()) or name == "deepseek"  # its mark is of prompts without a reply


def test_a_template_that_leaves_out_the_begun_reply_is_refused():
    template = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}"
    encoder = PromptEncoder(with_template(None, template), "m")
    with pytest.raises(ConfigError, match="drops the beginning of the reply"):
        encoder.begun_reply([USER], "So", ChatOptions())


PLACES = {
    function.__name__: function
    for function in (by_chat, by_server, by_default_of_the_server, by_inspect, by_lm_eval, by_sample)
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", TEMPLATES)
def test_prompts_are_transformers_own(llm, place, name):
    template, tokenizer = TEMPLATES[name], byte_tokenizer()
    num_seen = 0
    for messages in CONVERSATIONS[:1] if place == "by_sample" else CONVERSATIONS:
        for kwargs in (
            {},
            {"enable_thinking": False, "thinking": True, "date_string": "1 May", "none": None},
        ):
            expected = expected_ids(tokenizer, messages, template, kwargs)
            if expected is None and place == "by_lm_eval":  # its rule: without the system message
                expected = expected_ids(tokenizer, messages[1:], template, kwargs)
            if expected is None:
                with pytest.raises(TreeshareError, match="rejects them"):
                    PLACES[place](llm, messages, template, kwargs)
            else:
                assert PLACES[place](llm, messages, template, kwargs) == expected
                num_seen += 1
    assert num_seen >= 2


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", BROKEN)
def test_what_a_template_raises_is_one_line(llm, place, name):
    assert expected_ids(byte_tokenizer(), [USER], BROKEN[name], {}) is None
    with pytest.raises(
        TreeshareError, match=r"^messages: the model's chat template rejects them: ."
    ) as caught:
        PLACES[place](llm, [USER], BROKEN[name], {})
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400
    assert getattr(caught.value, "status", 400) == 400


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    "name",
    ["messages", "conversation", "tokenize", "add_generation_prompt", "chat_template", "tools", "documents",
     "continue_final_message", "return_tensors", "return_dict", "max_length", "tokenizer_kwargs"],
)  # fmt: skip
def test_reserved_names_are_refused(llm, place, name):
    with pytest.raises(
        TreeshareError, match=f"^chat_template_kwargs: got '{name}', expected variables of the template"
    ) as caught:
        PLACES[place](llm, [USER], QWEN_3, {name: True, "enable_thinking": False})
    if isinstance(caught.value, ApiError):
        assert (caught.value.status, caught.value.param) == (400, "chat_template_kwargs")


@pytest.mark.parametrize("value", ["off", 5, ["enable_thinking"], {1: 2}])
def test_switches_that_are_no_mapping(llm, value):
    with pytest.raises(ConfigError, match=r"^chat_template_kwargs: got .*, expected a mapping from names"):
        llm.chat([USER], chat_template=QWEN_3, chat_template_kwargs=value)
    if not isinstance(value, dict):  # JSON has no other names than texts
        with pytest.raises(ApiError, match=r"^chat_template_kwargs: "):
            parse_body(CHAT, {"messages": [USER], "chat_template_kwargs": value})


def test_a_request_says_otherwise_than_the_server(llm):
    body = parse_body(
        CHAT, {"messages": [USER], "max_tokens": 1, "chat_template_kwargs": {"enable_thinking": True}}
    )
    default = ChatOptions(chat_template=QWEN_3, chat_template_kwargs={"enable_thinking": False, "other": 1})
    job = make_job(llm, body, model="m", seed=0, chat=default)
    assert list(job.requests[0].prompt_token_ids) == by_chat(llm, [USER], QWEN_3, {})


MALFORMED = [
    (5, "messages: got 5"),
    ("Where?", "messages: got 'Where"),
    ({"role": "user", "content": "x"}, "messages: got {"),
    ([["Where?"]], "messages[0]: got 'Where?'"),
    ([["user", "Where?"]], "messages[0]: got 'user'"),
    ([{"content": "x"}], "messages[0]: role: got None"),
    ([{"role": 5, "content": "x"}], "messages[0]: role: got 5"),
    ([{"role": "user"}], "messages[0]: content: got None"),
    ([USER, {"role": "user", "content": None}], "messages[1]: content: got None"),
    ([{"role": "assistant", "tool_calls": [{}]}], "messages[0]: tool_calls: got {}"),
    ([{"role": "assistant", "tool_calls": "x"}], "messages[0]: tool_calls: got 'x'"),
    ([{"role": "user", "content": 5}], "messages[0]: content: got 5"),
    ([{"role": "user", "content": []}], "messages[0]: content: got []"),
    ([{"role": "user", "content": b"x"}], "messages[0]: content: got b'x'"),
    ([{"role": "user", "content": ["x"]}], "messages[0]: content: got the type None"),
    (
        [{"role": "user", "content": [{"type": "image_url"}]}],
        "messages[0]: content: got the type 'image_url'",
    ),
    (
        [{"role": "user", "content": [{"type": "text", "text": 5}]}],
        "messages[0]: content: got the type 'text'",
    ),
]


@pytest.mark.parametrize(("messages", "message"), MALFORMED)
def test_messages_that_are_none(llm, messages, message):
    with pytest.raises(ConfigError) as caught:
        llm.chat(messages, chat_template=QWEN_3)
    assert str(caught.value).startswith(message)
    assert str(caught.value).isprintable()


def test_an_empty_conversation_is_refused_and_no_conversation_is_nothing(llm):
    with pytest.raises(ConfigError, match="chat template rejects them"):
        llm.chat([[]], chat_template=QWEN_3)
    assert llm.chat([], chat_template=QWEN_3, use_tqdm=False) == []


def test_parts_of_text_are_joined_by_newlines(llm):
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    given, joined = {"role": "user", "content": parts}, {"role": "user", "content": "a\nb"}
    for template in TEMPLATES.values():
        kwargs = {"date_string": "today"}
        for place in (by_chat, by_server):
            assert place(llm, [given], template, kwargs) == place(llm, [joined], template, kwargs)


def test_a_tool_call_without_content_is_not_written_as_none():
    call = {"function": {"name": "f", "arguments": {}}}
    (message,) = check_messages([{"role": "assistant", "content": None, "tool_calls": [call]}])
    assert message == {"role": "assistant", "content": "", "tool_calls": [call]}


def test_the_last_message_is_gone_on_with(llm):
    messages, params = [USER, {"role": "assistant", "content": "In Nor"}], SamplingParams(max_tokens=1)
    options = {"add_generation_prompt": False, "continue_final_message": True, "chat_template": QWEN_3}
    (output,) = llm.chat(messages, params, use_tqdm=False, **options)
    assert output.prompt == byte_tokenizer().apply_chat_template(messages, tokenize=False, **options)
    assert output.prompt.endswith("In Nor")
    with pytest.raises(
        ConfigError, match=r"^continue_final_message: got True together with add_generation_prompt"
    ):
        llm.chat(messages, params, continue_final_message=True, chat_template=QWEN_3)


def test_tools_that_no_template_shows_are_refused(llm):
    with pytest.raises(ConfigError, match=r"^tools: the model's chat template does not support them"):
        llm.chat([USER], chat_template="{{ messages }}", tools=[{}])
    with pytest.raises(ConfigError, match=r"^tools: got 'x', expected a list"):
        llm.chat([USER], tools="x")


def test_async_chats_are_chats(llm):
    params = SamplingParams(max_tokens=6, temperature=0, ignore_eos=True)
    (expected,) = llm.chat([USER], params, use_tqdm=False, chat_template=QWEN_3)

    async def ask(served, **options):
        answers = served.chat([USER], params, options=ChatOptions(**options))
        return [output.completion.token_ids async for output in answers]

    async def run():
        async with AsyncLLM(llm) as served:
            with pytest.raises(ConfigError, match="rejects them"):
                await ask(served, chat_template=BROKEN["raises"])
            return await ask(served, chat_template=QWEN_3)

    assert asyncio.run(run()) == [expected.outputs[0].token_ids]


def test_lm_eval_leaves_out_only_a_system_message(caplog):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = REFUSING
    rules = TextRules(tokenizer, "m")
    assert rules.render_chat([SYSTEM, USER], add_generation_prompt=True) == "x"
    assert "it is left out" in caplog.text
    caplog.clear()
    for messages in ([ANSWER], [SYSTEM, ANSWER]):
        with pytest.raises(ConfigError, match="rejects them: only you"):
            rules.render_chat(messages, add_generation_prompt=True)
    assert caplog.text == ""


# -- special tokens around prompts --


def ending_tokenizer(template="<s> $A </s>"):
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return tokenizer


@pytest.mark.parametrize(
    ("template", "text", "words"),
    [
        ("<s> $A", "<s>hello", ["begin-of-sequence token twice"]),
        ("<s> $A </s>", "hello", ["end-of-sequence token, which the tokenizer adds"]),
        ("<s> $A </s>", "<s>hello", ["begin-of-sequence token twice", "end-of-sequence"]),
        ("<s> $A", "hello", []),
        ("$A", "<s>hello</s>", []),
        ("<s> $A", "", []),
        ("$A", "</s>", []),
    ],
)
@pytest.mark.parametrize("place", ["generate", "sample", "lm-eval"])
def test_added_tokens_are_told_once(caplog, template, text, words, place):
    tokenizer = ending_tokenizer(template)
    with caplog.at_level(logging.WARNING, "treeshare"):
        if place == "generate":
            encoder = PromptEncoder(tokenizer, "m")
            for _ in range(3):
                assert encoder.encode(text) == tokenizer(text)["input_ids"]
        elif place == "sample":
            built = FewShotPrompts(problems=[text] * 3, shots_by_problem=[[]] * 3, separator="")
            encode_prompts(PLAIN_TASK, built, tokenizer)
        else:
            rules = TextRules(tokenizer, "m")
            for _ in range(3):
                rules.encode(text, add_special_tokens=True)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == len(words)
    assert all(word in message for word, message in zip(words, messages, strict=True))


def test_a_chat_gets_no_added_tokens(caplog):
    """Though the tokenizer adds both; the template's own begin token stays the only one."""
    encoder = PromptEncoder(ending_tokenizer(), "m")
    prompt = encoder.chat_prompt([USER], ChatOptions(chat_template=LLAMA_3))
    assert prompt["prompt_token_ids"][:2].count(0) == 1
    assert prompt["prompt_token_ids"][-1] != 1
    assert caplog.records == []


def test_a_template_of_several_is_the_default(llm):
    """Templates by name, as some models have them."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = {"default": QWEN_3, "tool_use": LLAMA_3}
    encoder = PromptEncoder(tokenizer, "m")
    assert encoder.chat_prompt([USER], ChatOptions())["prompt_token_ids"] == by_chat(llm, [USER], QWEN_3, {})
    tokenizer.chat_template = {"tool_use": LLAMA_3}
    with pytest.raises(ConfigError, match="rejects them"):
        encoder.chat_prompt([USER], ChatOptions())
    assert isinstance(tokenizer, transformers.PreTrainedTokenizerBase)


def test_options_of_a_run():
    """What the manifest records; only where there is a template."""
    task = PLAIN_TASK
    options = PromptOptions(chat=True, chat_template_kwargs={"b": 1, "a": [None]})
    assert options.record(task) == {"shots": 0, "chat": True, "chat_template_kwargs": '{"a": [null], "b": 1}'}
    assert PromptOptions(chat=True).record(task) == {"shots": 0, "chat": True}
    with pytest.raises(ConfigError, match="chat_template_kwargs: got some without a chat template"):
        PromptOptions(chat_template_kwargs={"a": 1})
