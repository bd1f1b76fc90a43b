"""Sampling parameters that a model's publisher suggests."""

from __future__ import annotations

import json

import pytest

from treeshare import SamplingParams
from treeshare.errors import ConfigError, DataError
from treeshare.sampling import suggested_params, suggestions

OWN = {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "max_new_tokens": 50, "do_sample": True, "min_p": None}


def test_the_models_own_hold():
    found = suggestions("auto", OWN)
    assert suggested_params(found, "m") == SamplingParams(
        temperature=0.6, top_p=0.95, top_k=20, max_tokens=50
    )
    assert suggestions("vllm", OWN) == {}
    assert suggestions("auto", OWN, {"top_k": 5, "top_p": None})["top_k"] == 5


def test_a_folder(tmp_path):
    (tmp_path / "generation_config.json").write_text(
        json.dumps({"temperature": 0.1, "repetition_penalty": 1.2})
    )
    assert suggestions(tmp_path, OWN) == {"temperature": 0.1, "repetition_penalty": 1.2}
    assert suggestions(str(tmp_path), OWN, {"temperature": 0.5})["temperature"] == 0.5


@pytest.mark.parametrize("known", [[2, 5], 5])
def test_a_folder_with_other_ends(tmp_path, known):
    """vLLM would stop there, too; here they are refused, not passed over."""
    file = tmp_path / "generation_config.json"
    for same in (None, 5, [5]):
        file.write_text(json.dumps({"eos_token_id": same, "top_k": 3}))
        assert suggestions(tmp_path, {"eos_token_id": known}) == {"top_k": 3}
    for other in (7, [5, 7], "x"):
        file.write_text(json.dumps({"eos_token_id": other}))
        with pytest.raises(ConfigError, match=r"^generation_config: eos_token_id: got .* use SamplingParams"):
            suggestions(tmp_path, {"eos_token_id": known})


@pytest.mark.parametrize("text", ["[1]", "{", "\x00"])
def test_a_damaged_file(tmp_path, text):
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(DataError, match=r"generation_config\.json"):
        suggestions(tmp_path, {})


def test_what_is_refused(tmp_path):
    for given in ("Auto", "", 5, None, tmp_path / "nowhere"):
        with pytest.raises(ConfigError, match="expected auto, vllm or a folder"):
            suggestions(given, OWN)
    with pytest.raises(DataError, match=r"^generation_config\.json: cannot read "):
        suggestions(tmp_path, OWN)
    with pytest.raises(ConfigError, match="override_generation_config"):
        suggestions("auto", OWN, [1])
    with pytest.raises(ConfigError, match=r"generation_config\.json of m: temperature.*'vllm' ignores"):
        suggested_params({"temperature": "hot"}, "m")
