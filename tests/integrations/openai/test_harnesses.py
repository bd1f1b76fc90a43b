"""Other people's clients of OpenAI's endpoint against our server: its answers are those of ``LLM``."""

from __future__ import annotations

import gc

import pytest

from tests.integrations.openai.serving import NAME
from treeshare import SamplingParams

MESSAGES = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hello?"}]
PARAMS = {"max_tokens": 10, "seed": 3, "temperature": 0.7}


def replies(llm, messages=MESSAGES, **params):
    (output,) = llm.chat(messages, SamplingParams(**(PARAMS | params)), use_tqdm=False)
    return output


# -- litellm --


@pytest.fixture
def litellm(monkeypatch):
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # which it fetches else
    module = pytest.importorskip("litellm", reason="litellm is not installed")
    yield module
    gc.collect()  # what it leaves unclosed


LITELLM_WARNINGS = pytest.mark.filterwarnings("ignore")
"""Of its own making: pydantic's, unclosed clients."""


@LITELLM_WARNINGS
@pytest.mark.parametrize("stream", [False, True])
def test_litellm_chat(litellm, served, llm, stream):
    expected = replies(llm)
    options = {"api_base": f"{served.url}/v1", "api_key": "any", "messages": MESSAGES, **PARAMS}
    answer = litellm.completion(model=f"openai/{NAME}", stream=stream, **options)
    if stream:
        text = "".join(piece.choices[0].delta.content or "" for piece in answer)
    else:
        text = answer.choices[0].message.content
        assert answer.usage.prompt_tokens == len(expected.prompt_token_ids)
        assert answer.usage.prompt_tokens_details.cached_tokens == 0
    assert text == expected.outputs[0].text


@LITELLM_WARNINGS
def test_litellm_completions(litellm, served, llm):
    prompts = ["Once upon", "Once"]
    outputs = llm.generate(prompts, SamplingParams(n=2, **PARAMS), use_tqdm=False)
    answer = litellm.text_completion(
        model=f"text-completion-openai/{NAME}",
        prompt=prompts,
        n=2,
        api_base=f"{served.url}/v1",
        api_key="any",
        **PARAMS,
    )
    expected = [completion.text for output in outputs for completion in output.outputs]
    assert [choice["text"] for choice in answer.choices] == expected


# -- lm-eval --


def lm_eval_client(served):
    from lm_eval.models.openai_completions import LocalChatCompletion

    return LocalChatCompletion(model=NAME, base_url=f"{served.url}/v1/chat/completions", num_concurrent=1)


def test_lm_eval_chat_completions(served, llm):
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance
    from lm_eval.models.api_models import JsonChatStr

    client = lm_eval_client(served)
    conversations = [MESSAGES, [{"role": "user", "content": "Count: 1 2 3"}]]
    kwargs = {"until": ["\n", "7"], "max_gen_toks": 14}
    requests = []
    for doc, messages in enumerate(conversations):
        text = client.apply_chat_template(messages)
        assert isinstance(text, JsonChatStr)
        requests.append(Instance("generate_until", {}, (text, dict(kwargs)), 0, ("t", doc, 1)))
    got = client.generate_until(requests, disable_tqdm=True)
    # lm-eval asks greedily, with its own end-of-sequence text as a stop string.
    expected = [
        replies(llm, messages, temperature=0, max_tokens=14, stop=["\n", "7"]).outputs[0].text
        for messages in conversations
    ]
    assert got == expected
    assert len(set(got)) == 2


# -- Inspect --


@pytest.mark.filterwarnings("ignore:The 'initial' parameter is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # what it, and litellm before it, leave unclosed
def test_inspect_by_openai_api(served, llm, tmp_path, monkeypatch):
    """``--model openai-api/treeshare/NAME``, with the address in its environment."""
    inspect_ai = pytest.importorskip("inspect_ai")
    from inspect_ai import Task
    from inspect_ai.dataset import Sample
    from inspect_ai.scorer import includes
    from inspect_ai.solver import generate

    monkeypatch.setenv("TREESHARE_API_KEY", "any")
    monkeypatch.setenv("TREESHARE_BASE_URL", f"{served.url}/v1")
    questions = ["Hello?", "Count: 1 2 3"]
    dataset = [Sample(id=i, input=text, target="e") for i, text in enumerate(questions)]
    task = Task(dataset=dataset, solver=generate(), scorer=includes())
    model = f"openai-api/treeshare/{NAME}"
    (log,) = inspect_ai.eval(task, model=model, log_dir=str(tmp_path), display="none", **PARAMS)
    assert log.status == "success", log.error
    outputs = [replies(llm, [{"role": "user", "content": text}]) for text in questions]
    assert [sample.output.completion for sample in log.samples] == [o.outputs[0].text for o in outputs]
    usage = [sample.output.usage for sample in log.samples]
    assert [u.input_tokens for u in usage] == [len(o.prompt_token_ids) for o in outputs]
    gc.collect()
