"""Every name of vLLM's is answered: it is treeshare's own, or taken where it asks for nothing, or refused."""

from __future__ import annotations

import dataclasses
import enum
import inspect
import re

import pytest

import treeshare
from tests.integrations.conftest import chat_model  # noqa: F401 - a fixture
from tests.scripts.loading import ROOT, load_script
from treeshare import (
    LLM,
    AsyncLLM,
    CompletionOutput,
    LoRARequest,
    RequestOutput,
    SamplingParams,
    StructuredOutputsParams,
)
from treeshare.engine.beams import BeamSearchParams, BeamSearchSequence
from treeshare.engine.prompts import PromptEncoder
from treeshare.errors import ConfigError
from treeshare.integrations.openai.schema import BODIES, CHAT, COMPLETIONS, ApiError, parse_body
from treeshare.vllm_names import ANY, others_of, own_names, refuse_others, vllm_names

OWN = {
    "SamplingParams": frozenset(field.name for field in dataclasses.fields(SamplingParams)),
    "LLM": own_names(LLM.__init__),
    "LLM.generate": own_names(LLM.generate),
    "LLM.chat": own_names(LLM.chat),
    "LLM.beam_search": own_names(LLM.beam_search),
    "AsyncLLM.generate": own_names(AsyncLLM.generate),
    "BeamSearchParams": frozenset(field.name for field in dataclasses.fields(BeamSearchParams)),
    "BeamSearchSequence": frozenset(field.name for field in dataclasses.fields(BeamSearchSequence)),
    "LoRARequest": frozenset(field.name for field in dataclasses.fields(LoRARequest)),
    "StructuredOutputsParams": frozenset(field.name for field in dataclasses.fields(StructuredOutputsParams)),
    "RequestOutput": frozenset(field.name for field in dataclasses.fields(RequestOutput)),
    "CompletionOutput": frozenset(field.name for field in dataclasses.fields(CompletionOutput)),
}

HELLO = {"role": "user", "content": "x"}
BASE = {CHAT: {"messages": [HELLO]}, COMPLETIONS: {"prompt": "x"}}
"""The smallest requests."""

GIVEN = {
    "LLM": {"model"},
    "LLM.generate": {"prompts"},
    "LLM.chat": {"messages"},
    "LLM.beam_search": {"prompts", "params"},
}
"""Names without a default."""

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


@pytest.mark.parametrize("call", [call for call in OWN if not call.endswith(("Output", "Sequence"))])
def test_what_nobody_asks_for_is_taken(call):
    """Other names' defaults, which a script may write out, ask for nothing."""
    names = vllm_names()[call]
    refuse_others(call, {n: e["default"] for n, e in names.items() if "instead" in e}, OWN[call])


@pytest.mark.parametrize(
    ("kind", "own"),
    [
        (SamplingParams, {}),
        (BeamSearchParams, {"beam_width": 2, "max_tokens": 4}),
        (StructuredOutputsParams, {"choice": ["a"]}),
        (LoRARequest, {"lora_name": "a", "lora_int_id": 1, "lora_path": "b"}),
    ],
)
def test_defaults_of_parameters(kind, own):
    names = vllm_names()[kind.__name__]
    assert kind(**({name: entry["default"] for name, entry in names.items()} | own)) == kind(**own)
    for name, entry in vllm_names()["elsewhere"][kind.__name__].items():
        if entry["accepts"] != ANY:
            with pytest.raises(ConfigError, match=f"^{name}: got .*{re.escape(entry['instead'])}$"):
                kind(**own, **{name: OTHER_VALUE})


def test_defaults_of_calls(chat_model):  # noqa: F811
    """All of vLLM's arguments at once, each at vLLM's own default, change nothing."""
    names = vllm_names()
    defaults = {
        call: {name: entry["default"] for name, entry in names[call].items() if name not in GIVEN[call]}
        for call in GIVEN
    }
    written = LLM(str(chat_model), **(defaults["LLM"] | {"dtype": "float32"}))
    plain = LLM(str(chat_model), dtype="float32", reasoning_parser="none")
    params = SamplingParams(max_tokens=6, seed=3)
    quiet = {"use_tqdm": False}
    found = [
        (
            llm.generate("Once", **(arguments["LLM.generate"] | {"sampling_params": params} | quiet)),
            llm.chat([HELLO], **(arguments["LLM.chat"] | {"sampling_params": params} | quiet)),
            llm.beam_search(
                ["Once"], BeamSearchParams(beam_width=2, max_tokens=3), **arguments["LLM.beam_search"]
            ),
        )
        for llm, arguments in ((written, defaults), (plain, {call: {} for call in GIVEN}))
    ]
    assert found[0] == found[1]
    assert written.engine.reasoning.tags is None
    for parser in ("", None):
        assert LLM(str(chat_model), reasoning_parser=parser).engine.reasoning.tags is None


@pytest.mark.parametrize("call", vllm_names()["elsewhere"])
def test_names_from_elsewhere(call):
    """Of older versions, transformers and OpenAI: taken where they ask for nothing, else one sentence."""
    own = OWN.get(call, frozenset())
    for name, entry in vllm_names()["elsewhere"][call].items():
        assert name not in own
        assert name not in vllm_names().get(call, {})
        if call == "import":
            with pytest.raises(
                ImportError, match=f"^{name}: treeshare has none; {re.escape(entry['instead'])}$"
            ):
                getattr(treeshare, name)
            continue
        for value in ["x"] if entry["accepts"] == ANY else entry["accepts"]:
            refuse_others(call, {name: value}, own)
        if entry["accepts"] != ANY:
            with pytest.raises(ConfigError, match=f"^{name}: got .*{re.escape(entry['instead'])}$"):
                refuse_others(call, {name: OTHER_VALUE}, own)


@pytest.mark.parametrize("url", [CHAT, COMPLETIONS])
def test_fields_from_elsewhere(url):
    names = vllm_names()["elsewhere"]["server"]
    own = BODIES[url].model_fields
    for name in names.keys() - own.keys():
        entry = names[name]
        for value in ["x"] if entry["accepts"] == ANY else entry["accepts"]:
            assert parse_body(url, BASE[url] | {name: value}) == parse_body(url, BASE[url])
        if entry["accepts"] != ANY:
            with pytest.raises(ApiError, match=f"^{name}: got .*{re.escape(entry['instead'])}$") as caught:
                parse_body(url, BASE[url] | {name: [OTHER_VALUE]})
            assert caught.value.code == "unsupported_parameter"
    for name in ("guided_json", "guided_regex", "guided_choice", "guided_grammar", "guided_decoding_backend"):
        with pytest.raises(ApiError, match="structured_outputs"):
            parse_body(url, BASE[url] | {name: "x"})


@pytest.mark.parametrize("url", [CHAT, COMPLETIONS])
def test_every_field_of_openais_client(url):
    """Each argument of the official client's calls is a field, or answered by name."""
    resources = pytest.importorskip("openai.resources")
    create = resources.chat.Completions.create if url == CHAT else resources.Completions.create
    names = set(inspect.signature(create).parameters) - {"self", "timeout"}
    names = {name for name in names if not name.startswith("extra_")}
    kind = "chat" if url == CHAT else "completions"
    assert len(names) > 15
    assert names <= {*BODIES[url].model_fields, *others_of(kind), *others_of("server")}


def test_attributes_that_only_vllm_has(chat_model):  # noqa: F811
    """Absent ones raise ``AttributeError`` with what to use instead; the others are there."""
    llm = LLM(str(chat_model))
    (output,) = llm.generate("Once", SamplingParams(max_tokens=1), use_tqdm=False)
    (beams,) = llm.beam_search("Once", BeamSearchParams(beam_width=1, max_tokens=1))
    owners = {
        "LLM.": llm,
        "RequestOutput": output,
        "CompletionOutput": output.outputs[0],
        "BeamSearchSequence": beams.sequences[0],
    }
    for call, owner in owners.items():
        for name, entry in vllm_names()[call].items():
            assert hasattr(owner, name) == ("instead" not in entry), name
            if "instead" in entry:
                words = f"^{call.rstrip('.')}.{name}: treeshare has none; {re.escape(entry['instead'])}$"
                with pytest.raises(AttributeError, match=words):
                    getattr(owner, name)
        with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
            owner.nonsense  # noqa: B018


def test_prompts():
    """What a mapping may hold beside text and tokens is answered, too: an image is not left out."""
    encoder = PromptEncoder(None, "a model")
    for name, entry in vllm_names()["prompt"].items():
        prompt = treeshare.TokensPrompt(prompt_token_ids=[1, 2])
        if "instead" not in entry:
            continue
        for value in ["x"] if entry["accepts"] == ANY else entry["accepts"]:
            assert encoder.parse(0, prompt | {name: value}) == (None, [1, 2])
        if entry["accepts"] != ANY:
            with pytest.raises(
                ConfigError, match=rf"^prompts\[0\]: {name}: got .*{re.escape(entry['instead'])}$"
            ):
                encoder.parse(0, prompt | {name: OTHER_VALUE})
    with pytest.raises(ConfigError, match=r"prompts\[0\]: prompt: got 'promt', .*did you mean prompt"):
        encoder.parse(0, {"promt": "x", "prompt_token_ids": [1]})


def test_values_are_compared_by_kind():
    refuse_others("LLM", {"tensor_parallel_size": 1, "cpu_offload_gb": 0.0}, OWN["LLM"])
    refuse_others("LLM.generate", {"priority": [0, 0]}, OWN["LLM.generate"])
    with pytest.raises(ConfigError, match=r"priority: got \[0, 1\], expected None or 0"):
        refuse_others("LLM.generate", {"priority": [0, 1]}, OWN["LLM.generate"])
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
    with pytest.raises(AttributeError, match=r"^n: .* use params\.replace\(n=\.\.\.\)$"):
        params.n = 4


def test_the_page_is_true():
    script = load_script(ROOT / "scripts", "write_from_vllm")
    assert script.PAGE.read_text(encoding="utf-8") == script.written()


@pytest.mark.parametrize("url", [CHAT, COMPLETIONS])
def test_every_field_of_a_request(url):
    base = BASE[url]
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
        assert parse_body(url, base | {name: entry["default"]}) == parse_body(url, base), name
        if entry["accepts"] != ANY:
            with pytest.raises(ApiError, match=f"^{name}: got .*{re.escape(entry['instead'])}$"):
                parse_body(url, base | {name: [OTHER_VALUE]})
