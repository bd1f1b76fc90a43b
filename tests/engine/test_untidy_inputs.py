"""What people hand to ``LLM`` by mistake: each is one sentence, and nothing runs on a guess."""

from __future__ import annotations

import re

import pytest

from tests.cli.reasoning_model import saved_reasoning_model
from treeshare import LLM, BeamSearchParams, LoRARequest, SamplingParams, TreeshareError

USER = {"role": "user", "content": "a"}
WIDTH = {"beam_width": 2, "max_tokens": 2}


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    return LLM(saved_reasoning_model(tmp_path_factory.mktemp("model")), dtype="float32", enable_lora=True)


def thought(**values):
    return [{"role": "assistant", "content": "a", **values}]


MISTAKES = {
    "a token twice": (
        lambda llm: SamplingParams(logit_bias={"5": 1, 5: 2}),
        "logit_bias: got 'token 5 twice'",
    ),
    "other parameters for beams": (
        lambda llm: llm.beam_search("a", SamplingParams()),
        "expected BeamSearchParams(beam_width=..., max_tokens=...)",
    ),
    "no parameters for beams": (lambda llm: llm.beam_search("a", None), "params: got None, expected Beam"),
    "a text for a truth": (
        lambda llm: BeamSearchParams(**WIDTH, ignore_eos="no"),
        "ignore_eos: got 'no', expected True or False",
    ),
    "values without names": (lambda llm: BeamSearchParams(2, 3), "BeamSearchParams: too many positional"),
    "a value left out": (
        lambda llm: BeamSearchParams(beam_width=2),
        "BeamSearchParams: missing a required argument: 'max_tokens'; give values by their names",
    ),
    "an adapter's number": (lambda llm: LoRARequest("a", 0, "x"), "lora_int_id: got 0"),
    "an adapter's name": (lambda llm: LoRARequest("", 1, "x"), "lora_name: got ''"),
    "an adapter's folder": (lambda llm: LoRARequest("a", 1, 5), "lora_path: got 5, expected a folder"),
    "too few adapters": (
        lambda llm: llm.generate(["a", "b"], lora_request=[None]),
        "lora_request: got '1 for 2 prompts', expected one, or one for each prompt",
    ),
    "reasoning that is no text": (
        lambda llm: llm.chat(thought(reasoning_content=5)),
        "messages[0]: reasoning_content: got 5, expected text",
    ),
    "two reasonings": (
        lambda llm: llm.chat(thought(reasoning_content="x", reasoning="y")),
        "messages[0]: reasoning: got 'y', expected what reasoning_content has, or nothing",
    ),
    "a prompt's text": (
        lambda llm: llm.generate({"prompt": 5, "prompt_token_ids": [5]}),
        "prompts[0]: got 'int', expected text",
    ),
    "an image": (
        lambda llm: llm.generate({"prompt": "a", "multi_modal_data": {"image": 1}}),
        "prompts[0]: multi_modal_data: got {'image': 1}, expected None or {}; only text generation is",
    ),
    "no prompts": (lambda llm: llm.generate(), "prompts: got None, expected text, "),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(llm, name):
    call, message = MISTAKES[name]
    with pytest.raises(TreeshareError, match=re.escape(message)) as caught:
        call(llm)
    assert "\n" not in str(caught.value)
    assert not llm.stats.num_tokens


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reasoning_parser": ["<a>", "</a>"]}, "reasoning_parser: got ['<a>', '</a>'], expected auto, none"),
        ({"reasoning_parser": False}, "reasoning_parser: got False"),
        ({"enable_lora": "yes"}, "enable_lora: got 'yes', expected True or False"),
        (
            {"override_generation_config": {"eos_token_id": 5}},
            "override_generation_config: got 'eos_token_id', expected of temperature, ",
        ),
    ],
)
def test_mistakes_of_models(tmp_path, options, message):
    with pytest.raises(TreeshareError, match=re.escape(message)):
        LLM(saved_reasoning_model(tmp_path), **options)


def test_one_reasoning_by_two_names(llm):
    """As our own server's answers have it: handed back they are one."""
    params = SamplingParams(max_tokens=1)
    prompts = [
        llm.chat([USER, *thought(**values), USER], params, use_tqdm=False)[0].prompt
        for values in (
            {"reasoning": "x", "reasoning_content": "x"},
            {"reasoning": "x"},
            {"reasoning_content": "x"},
        )
    ]
    assert len(set(prompts)) == 1
    assert "<think>x</think>" in prompts[0]
