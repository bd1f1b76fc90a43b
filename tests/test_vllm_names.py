"""Every name of vLLM's is answered: it is treeshare's own, or taken where it asks for nothing, or refused."""

from __future__ import annotations

import dataclasses
import enum
import re

import pytest

from tests.scripts.loading import ROOT, load_script
from treeshare import LLM, CompletionOutput, RequestOutput, SamplingParams
from treeshare.engine.beams import BeamSearchParams
from treeshare.errors import ConfigError
from treeshare.integrations.openai.schema import BODIES, CHAT, COMPLETIONS, ApiError, parse_body
from treeshare.vllm_names import ANY, own_names, refuse_others, vllm_names

OWN = {
    "SamplingParams": frozenset(field.name for field in dataclasses.fields(SamplingParams)),
    "LLM": own_names(LLM.__init__),
    "LLM.generate": own_names(LLM.generate),
    "LLM.chat": own_names(LLM.chat),
    "LLM.beam_search": own_names(LLM.beam_search),
    "BeamSearchParams": frozenset(field.name for field in dataclasses.fields(BeamSearchParams)),
    "RequestOutput": frozenset(field.name for field in dataclasses.fields(RequestOutput)),
    "CompletionOutput": frozenset(field.name for field in dataclasses.fields(CompletionOutput)),
}

OTHER_VALUE = object()
"""A value that no name takes unless it takes all."""


@pytest.mark.parametrize("call", OWN)
def test_every_name(call):
    names = vllm_names()[call]
    assert len(names) >= 5
    for name, entry in names.items():
        assert ("instead" in entry) == (name not in OWN[call]), name
        if "instead" not in entry:
            continue
        for value in [] if entry["accepts"] == ANY else entry["accepts"]:
            refuse_others(call, {name: value}, OWN[call])
        if entry["accepts"] == ANY:
            refuse_others(call, {name: OTHER_VALUE}, OWN[call])
        else:
            with pytest.raises(ConfigError, match=f"^{name}: got .*{re.escape(entry['instead'])}$"):
                refuse_others(call, {name: OTHER_VALUE}, OWN[call])


def test_defaults_are_taken():
    """What a script writes out because it is vLLM's default changes nothing."""
    for call, names in vllm_names().items():
        for name, entry in names.items() if call in ("SamplingParams", "LLM.generate", "LLM.chat") else ():
            if "instead" in entry:
                refuse_others(call, {name: entry["default"]}, OWN[call])
    defaults = {name: entry["default"] for name, entry in vllm_names()["SamplingParams"].items()}
    assert SamplingParams(**defaults) == SamplingParams()


def test_values_are_compared_by_kind():
    refuse_others("LLM", {"tensor_parallel_size": 1, "cpu_offload_gb": 0.0}, OWN["LLM"])
    with pytest.raises(ConfigError, match=r"tensor_parallel_size: got True, expected 1"):
        refuse_others("LLM", {"tensor_parallel_size": True}, OWN["LLM"])
    kind = enum.Enum("RequestOutputKind", ["CUMULATIVE", "DELTA"])
    assert SamplingParams(output_kind=kind.CUMULATIVE) == SamplingParams()
    with pytest.raises(ConfigError, match=r"LLM\.stream"):
        SamplingParams(output_kind=kind.DELTA)


def test_unknown_names():
    with pytest.raises(ConfigError, match=r"got 'temprature'.*did you mean temperature"):
        SamplingParams(temprature=1)
    with pytest.raises(ConfigError, match=r"got 'max_model_length'.*did you mean max_model_len"):
        LLM("nowhere", max_model_length=5)


def test_parameters_are_changed_by_copies():
    params = SamplingParams(n=3, stop="x")
    assert params.replace(n=4) == SamplingParams(n=4, stop="x")
    assert params.clone() == params
    with pytest.raises(ConfigError, match=r"^n: "):
        params.replace(n=0)


def test_the_page_is_true():
    script = load_script(ROOT / "scripts", "write_from_vllm")
    assert script.PAGE.read_text(encoding="utf-8") == script.written()


@pytest.mark.parametrize("url", [CHAT, COMPLETIONS])
def test_every_field_of_a_request(url):
    base = {"messages": [{"role": "user", "content": "x"}]} if url == CHAT else {"prompt": "x"}
    kind = BODIES[url]
    own = {*kind.model_fields, *(field.alias for field in kind.model_fields.values())}
    names = vllm_names()["chat" if url == CHAT else "completions"]
    assert len(names) > 50
    for name, entry in names.items():
        assert ("instead" in entry) == (name not in own), name
        if "instead" not in entry:
            continue
        for value in ["x"] if entry["accepts"] == ANY else entry["accepts"]:
            assert parse_body(url, base | {name: value}) == parse_body(url, base)
        if entry["accepts"] != ANY:
            with pytest.raises(ApiError, match=f"^{name}: got .*{re.escape(entry['instead'])}$"):
                parse_body(url, base | {name: [OTHER_VALUE]})
