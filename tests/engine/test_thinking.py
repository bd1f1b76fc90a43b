"""Reasoning in the engine: budgets, grammars behind it, splitting; bits that depend on the request alone."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from tests.cli.reasoning_model import END, START, saved_reasoning_model
from tests.cli.text_model import saved_text_model
from tests.engine.forests import assert_bits_are_the_requests_own, requests_for
from treeshare.config import EngineConfig
from treeshare.engine.engine import Engine
from treeshare.engine.llm import LLM
from treeshare.errors import ConfigError
from treeshare.models import load_model
from treeshare.sampling import SamplingParams

BASE = [5, 9, 20, 33, 41, 7, 8] * 4
OPENED = [*BASE, START, 13]
PARAMS = SamplingParams(n=6, max_tokens=24, temperature=1.0, ignore_eos=True, skip_special_tokens=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return saved_reasoning_model(tmp_path_factory.mktemp("thinking"))


@pytest.fixture(scope="module")
def llm(folder):
    return LLM(folder, dtype="float32")


def outputs(llm, prompt, **values):
    params = replace(PARAMS, **values)
    return llm.generate([{"prompt_token_ids": prompt}], params, use_tqdm=False)[0].outputs


@pytest.mark.parametrize("budget", [0, 1, 7])
def test_a_budget_forces_the_end(llm, budget):
    for output in outputs(llm, OPENED, thinking_token_budget=budget):
        assert END in output.token_ids[: budget + 1]
    free = outputs(llm, OPENED)
    assert any(END not in output.token_ids[:8] for output in free)  # the control


def test_a_budget_counts_from_a_tag_that_the_model_writes(llm):
    found = outputs(llm, BASE, thinking_token_budget=4, logit_bias={START: 12}, n=16)
    begun = [output for output in found if output.token_ids[0] == START]
    assert begun
    for output in begun:
        assert END in output.token_ids[:6]
    for output in found:
        if output.token_ids[0] not in (START, 13, 12, 35):  # something but a blank: it is the answer
            assert output.reasoning is None


def test_tags_of_many_tokens_are_forced_and_found(tmp_path):
    """Tags whose letters are tokens of their own; the prompt opens the reasoning."""
    llm = LLM(saved_text_model(tmp_path), dtype="float32", reasoning_parser="<r> </r>")
    prompt = llm.encode("Why? <r>\n")
    for output in outputs(llm, prompt, thinking_token_budget=3):
        assert output.text[3:7] == "</r>" or "</r>" in output.text[:7] or "\ufffd" in output.text
        assert output.token_ids[3:7] == llm.get_tokenizer().encode("</r>", add_special_tokens=False)
        assert output.reasoning + "</r>" + output.answer == output.text


def test_a_grammar_begins_behind_the_reasoning(llm):
    pytest.importorskip("llguidance", reason="llguidance is not installed")
    pattern = {"regex": "[ab]{2,4}"}
    for output in outputs(llm, OPENED, thinking_token_budget=5, structured_outputs=pattern, max_tokens=64):
        assert re.fullmatch("[ab]{2,4}", output.answer)
        assert output.reasoning
        assert output.finish_reason == "stop"
    # Not opened by the prompt: the model may begin to reason, or answer at once.
    found = outputs(
        llm, BASE, thinking_token_budget=5, structured_outputs=pattern, logit_bias={START: 2}, n=32
    )
    assert {output.reasoning is None for output in found} == {True, False}
    for output in found:
        assert re.fullmatch("[ab]{2,4}", output.answer)
        assert (output.token_ids[0] == START) == output.text.startswith("<think>")
    closed = [*BASE, START, 13, END, 13]
    for output in outputs(llm, closed, structured_outputs=pattern, logit_bias={START: -100}):
        assert re.fullmatch("[ab]{2,4}", output.text)


CASES = {
    "budget": {"thinking_token_budget": 5},
    "budget and grammar": {"thinking_token_budget": 5, "structured_outputs": {"regex": "[ab]{2,9}"}},
    "prompt log-probabilities": {"thinking_token_budget": 3, "prompt_logprobs": 1, "logprobs": 1},
}


@pytest.mark.parametrize("name", CASES)
def test_bits_are_the_requests_own(folder, name):
    """Alone, resumed, with more completions, in single rows, few rows, rows taken away: the same."""
    if "grammar" in name:
        pytest.importorskip("llguidance", reason="llguidance is not installed")
    params = replace(PARAMS, n=4, max_tokens=14, **CASES[name])
    loaded = load_model(folder, "float32")

    def engine(**config):
        return Engine(loaded, EngineConfig(page_size=16, **config), check_invariants=True)

    def run(engine, requests):
        found = {
            (c.request_index, c.completion_index): (c.token_ids, c.text, c.logprobs, c.prompt_logprobs)
            for c in engine.run(requests)
        }
        engine.clear()
        return found

    requests = requests_for([OPENED, BASE, [*OPENED, 99]], params)
    others = requests_for([BASE, OPENED], SamplingParams(n=2, max_tokens=9), seed=3)
    assert_bits_are_the_requests_own(engine, requests, others, run)


def test_where_a_prompt_opens_reasoning(llm):
    opens = llm.engine.reasoning.opens
    assert opens(OPENED)
    assert opens([*BASE, START])
    assert opens([*BASE, START, 50, 51])  # the assistant had begun to reason
    assert not opens(BASE)
    assert not opens([*BASE, START, 50, END, 13])
    assert not opens([*BASE, START, 50, 1, 60])  # somebody else spoke of it: a special token is behind
    assert not LLM(llm.model_id, reasoning_parser="none").engine.reasoning.opens(OPENED)


def test_tags_that_are_special_tokens_stay_in_the_text(tmp_path):
    llm = LLM(saved_reasoning_model(tmp_path, special=True), dtype="float32")
    for output in outputs(llm, OPENED, thinking_token_budget=4, min_tokens=0):
        assert "</think>" in output.text
        assert "<s>" not in output.text
        assert output.answer == output.text.partition("</think>")[2]


def test_a_budget_without_tags_is_refused(llm, tmp_path):
    message = (
        "thinking_token_budget: got 4, expected None: the model has no known reasoning tags; give the tags"
    )
    plain = LLM(saved_text_model(tmp_path), dtype="float32")
    for model in (plain, LLM(llm.model_id, reasoning_parser="none")):
        with pytest.raises(ConfigError, match=message):
            outputs(model, BASE, thinking_token_budget=4)
    for wrong in (-1, 1.5, True):
        with pytest.raises(ConfigError, match="thinking_token_budget: got"):
            SamplingParams(thinking_token_budget=wrong)
