"""The table of models: what it says holds for those that are used most, and all of it in a slow test."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.scripts.loading import ROOT, load_script
from tests.turns import slow_but
from treeshare.models import self_check
from treeshare.models.calls import CallRecorder
from treeshare.models.known import known_models

table = load_script(ROOT / "scripts", "model_table")
KNOWN = {model.name: model for model in known_models()}

REQUIRED = {
    "qwen2",
    "qwen3",
    "qwen2_moe",
    "qwen3_moe",
    "mistral",
    "ministral",
    "mixtral",
    "gemma2",
    "gemma3_text",
    "gemma4_text",
    "gpt_oss",
    "olmo3",
    "olmoe",
    "cohere2",
    "exaone4",
    "ernie4_5_moe",
    "granitemoe",
    "phimoe",
    "minimax_m2",
    "deepseek_v2",
    "deepseek_v3",
    "glm4_moe_lite",
    "nemotron",
    "stablelm",
    "falcon",
    "llama4_text",
}


EVERY_TIME = ("gemma3_text", "gpt_oss", "deepseek_v3")
"""Windows in some layers; sinks and experts; keys wider than values."""


def test_the_page_is_the_list():
    assert table.TABLE.read_text(encoding="utf-8") == table.markdown(list(KNOWN.values()))
    assert list(KNOWN) == table.names()


def test_nothing_is_different_and_what_people_have_is_equal():
    assert {model.verdict for model in KNOWN.values()} == {"equal", "refused", "not built"}
    equal = {name for name, model in KNOWN.items() if model.verdict == "equal"}
    windows = {"qwen2, windows", "qwen3, windows", "qwen2_moe, windows", "phimoe, window", "mixtral, window"}
    assert equal >= REQUIRED | windows | set(table.MOST_USED)
    assert sum("," not in name for name in equal) >= 104


@pytest.mark.parametrize("name", slow_but(EVERY_TIME, table.MOST_USED))
def test_those_that_are_used_most(name, tmp_path):
    table.save(name, tmp_path / "model")
    assert table.difference(tmp_path / "model") == ""


@pytest.mark.slow
@pytest.mark.parametrize("name", table.names())
def test_every_line(name):
    row = table.examine(name)
    assert (row.verdict, row.reason) == (KNOWN[name].verdict, KNOWN[name].reason)


# -- it can fail --


@pytest.fixture
def unchecked(monkeypatch):
    """Models are not compared with transformers' when they are loaded."""
    monkeypatch.setattr("treeshare.models.binding.require_lengths", lambda model: None)
    monkeypatch.setattr("treeshare.models.binding.check_lengths", lambda *_: None)
    monkeypatch.setattr(self_check.SelfCheck, "check", lambda self: 0.0)


def test_a_window_that_is_one_too_long_is_different(monkeypatch, unchecked):
    own = CallRecorder.with_mask

    def longer(*args):
        spec = own(*args)
        return replace(spec, window=spec.window and spec.window + 1)

    monkeypatch.setattr(CallRecorder, "with_mask", longer)
    row = table.examine("mistral")
    assert row.verdict == "DIFFERENT"
    assert row.reason


def test_a_traceback_is_none_of_the_others(monkeypatch, capsys):
    def fail(*_):
        raise ZeroDivisionError("nothing")

    monkeypatch.setattr(table, "difference", fail)
    row = table.examine("llama")
    assert (row.verdict, row.reason) == ("CRASH", "ZeroDivisionError: nothing")
    assert "Traceback" in capsys.readouterr().err


def test_what_transformers_cannot_build_is_said():
    row = table.examine("qwen4_exp_text")
    assert row.verdict == "not built"
    assert "Error" in row.reason


def test_a_model_that_needs_more_is_refused():
    row = table.examine("bloom")
    assert (row.verdict, row.reason) == ("refused", "ALiBi position biases")
