"""New weights: all or none, whatever goes wrong, and while nothing depends on the old ones."""

from __future__ import annotations

import pytest
import torch

from treeshare import LLM, SamplingParams
from treeshare.errors import ConfigError
from treeshare.models import load_model, weights

FIRST, SECOND = "model.layers.0.input_layernorm.weight", "model.layers.1.input_layernorm.weight"


class Interrupted(BaseException):
    """As ``KeyboardInterrupt``: no ``Exception``."""


@pytest.fixture
def model(model_dir):
    return load_model(model_dir("llama"), "float32").model


def values(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(model, before):
    return all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


BAD = {
    "an unknown name": ({"no.such": torch.ones(1)}, r"weights\['no.such'\]: got 'an unknown name'"),
    "a name that is no text": ({5: torch.ones(1)}, r"weights\[5\]: got 'an unknown name'"),
    "another shape": ({SECOND: torch.ones(2, 2)}, r"got \(2, 2\), expected the shape \(64,\)"),
    "a list": ({SECOND: [1.0] * 64}, "got 'list', expected a tensor"),
    "None": ({SECOND: None}, "got 'NoneType', expected a tensor"),
    "without values": ({SECOND: torch.empty(64, device="meta")}, "meta device', expected one with values"),
    "complex": ({SECOND: torch.ones(64, dtype=torch.complex64)}, "expected real numbers"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("is_last", [True, False])
def test_what_is_no_weight_changes_nothing(model, name, is_last):
    bad, message = BAD[name]
    good = {FIRST: torch.full((64,), 3.0)}
    before = values(model)
    with pytest.raises(ConfigError, match=message):
        weights.change_weights(model, good | bad if is_last else bad | good)
    assert same(model, before)


@pytest.mark.parametrize("given", [None, 5, [("a", torch.ones(1))], "x"])
def test_what_is_no_mapping(model, given):
    with pytest.raises(ConfigError, match=r"^weights: got .*, expected a mapping from names to tensors$"):
        weights.change_weights(model, given)


@pytest.mark.parametrize("error", [RuntimeError, MemoryError, KeyboardInterrupt, Interrupted])
@pytest.mark.parametrize("number", [0, 1, 4])
def test_what_fails_in_the_middle_changes_nothing(model, monkeypatch, error, number):
    """Memory that runs out, an interrupt: whichever weight is being copied, also half of it."""
    before, left = values(model), number
    copy = torch.Tensor.copy_

    def fails(self, *args):
        nonlocal left
        left -= 1
        if left == -1:
            copy(self[: len(self) // 2], args[0][: len(self) // 2])
            raise error
        return copy(self, *args)

    monkeypatch.setattr(torch.Tensor, "copy_", fails)
    expected = ConfigError if issubclass(error, Exception) else error
    with pytest.raises(expected):
        weights.change_weights(model, {name: value + 1 for name, value in before.items()})
    assert left < 0
    assert same(model, before)


def test_the_models_own_tensors_in_other_places(model):
    held = model.state_dict()
    weights.change_weights(model, {FIRST: held[FIRST] * 2})
    first, second = held[FIRST].clone(), held[SECOND].clone()
    weights.change_weights(model, {FIRST: held[SECOND], SECOND: held[FIRST]})
    assert torch.equal(held[FIRST], second)
    assert torch.equal(held[SECOND], first)
    up = "model.layers.0.mlp.up_proj.weight"
    turned = held[up].flip(0).clone()
    weights.change_weights(model, {up: held[up].view(held[up].shape)})
    weights.change_weights(model, {up: held[up].flip(0)})
    assert torch.equal(held[up], turned)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64])
def test_other_dtypes_are_converted(model, dtype):
    new = torch.arange(64).to(dtype)
    assert weights.change_weights(model, {FIRST: new})
    assert torch.equal(model.state_dict()[FIRST], new.float())


def test_a_failure_leaves_tokens_and_version(model_dir, monkeypatch):
    llm = LLM(model_dir("llama"), dtype="float32")
    params = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)

    def tokens():
        output = llm.generate([[5, 6, 7]], params, use_tqdm=False)[0].outputs[0]
        return output.token_ids, set(output.weight_versions)

    before = tokens()
    for bad, _ in BAD.values():
        with pytest.raises(ConfigError):
            llm.update_weights({FIRST: torch.zeros(64)} | bad)
    assert tokens() == before


def test_nothing_else_runs_while_a_search_is_open(model_dir):
    """Its KV would be outdated, or lost; it ends by ``close``, or when nobody holds it any more."""
    llm = LLM(model_dir("llama"), dtype="float32")
    norm = {"model.norm.weight": llm.model.state_dict()["model.norm.weight"] * 1.5}
    calls = {
        "update_weights": lambda: llm.update_weights(norm),
        "engine": lambda: llm.generate([[5, 6]], use_tqdm=False),
        "score": lambda: llm.score([([5], [6])], use_tqdm=False),
        "search": lambda: llm.search([5, 6], max_tokens=4).close(),
    }
    search = llm.search([5, 6, 7], max_tokens=8)
    expected = search.extend([(search.root, 9)])[0].logprobs
    for name, call in calls.items():
        with pytest.raises(ConfigError, match=f"^{name}: a search is open"):
            call()
    assert (search.extend([(search.root, 9)])[0].logprobs == expected).all()
    search.close()
    search.close()
    for use in (lambda: search.extend([(search.root, 9)]), lambda: search.fork(search.root)):
        with pytest.raises(ConfigError, match=r"^search: it was closed"):
            use()
    for call in calls.values():
        call()
    forgotten = llm.search([5, 6, 7], max_tokens=8)
    del forgotten
    for call in calls.values():
        call()
