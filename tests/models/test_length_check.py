"""What shows behind a length only is found when a model is loaded, on a small one of its class."""

from __future__ import annotations

from dataclasses import replace

import pytest
import transformers

from tests.models.tiny import _COMMON, CONFIGS, make_model
from treeshare.errors import UnsupportedModelError
from treeshare.models import length_check
from treeshare.models.binding import bind_model
from treeshare.models.calls import CallRecorder
from treeshare.models.length_check import require_lengths


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """No model was checked before."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "treeshare" / "checked"


def _qwen2_moe(**fields):
    """A window of 512 tokens in the mask alone, which no check of the real weights reaches."""
    return transformers.Qwen2MoeConfig(
        **_COMMON,
        use_sliding_window=True,
        sliding_window=512,
        layer_types=["full_attention", "sliding_attention", "full_attention"],
        num_experts=2,
        num_experts_per_tok=1,
        moe_intermediate_size=32,
        shared_expert_intermediate_size=32,
        **fields,
    )


FAULTS = {
    "the mask's window is not known": lambda spec: replace(spec, window=None),
    "the window is one longer": lambda spec: replace(spec, window=spec.window and spec.window + 1),
    "the window is one shorter": lambda spec: replace(spec, window=spec.window and spec.window - 1),
    "a chunk instead of a window": lambda spec: replace(spec, window=None, chunk=spec.window),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_window_that_lives_in_the_mask_alone_is_found(monkeypatch, fault):
    own = CallRecorder.with_mask
    bind_model(make_model(_qwen2_moe()))
    monkeypatch.setattr(length_check, "_place", lambda model: length_check.Path("nowhere"))
    monkeypatch.setattr(CallRecorder, "with_mask", lambda *args: FAULTS[fault](own(*args)))
    with pytest.raises(UnsupportedModelError, match="beyond its windows, chunks or other lengths"):
        bind_model(make_model(_qwen2_moe()))


def test_a_check_is_remembered_for_a_class_and_configuration(own_cache, monkeypatch):
    checked = []
    monkeypatch.setattr(length_check, "compare", lambda small: checked.append(small.config.sliding_window))
    for sliding_window in (512, 512, 511):
        config = _qwen2_moe()
        config.sliding_window = sliding_window
        require_lengths(make_model(config))
    assert len(checked) == 2
    assert len(list(own_cache.iterdir())) == 2


def test_a_fault_is_not_remembered(own_cache, monkeypatch):
    def refuse(small):
        raise UnsupportedModelError("differs")

    monkeypatch.setattr(length_check, "compare", refuse)
    for _ in range(2):
        with pytest.raises(UnsupportedModelError, match="differs"):
            require_lengths(make_model(CONFIGS["llama"]()))
    assert not own_cache.exists()


def test_what_cannot_be_made_small_is_said(monkeypatch, capsys):
    monkeypatch.setattr(length_check, "small_model", lambda *args, **options: None)
    require_lengths(make_model(CONFIGS["llama"]()))
    assert capsys.readouterr().err == (
        "llama: its windows are not checked: its configuration cannot be made small\n"
    )


def test_a_cache_that_forgets_what_the_mask_shows_is_refused():
    """Moshi's code has no window; ``generate`` gives it a cache with one."""
    fields = {key: value for key, value in _COMMON.items() if key != "intermediate_size"}
    config = transformers.MoshiConfig(**fields, head_dim=16, ffn_dim=192, sliding_window=512)
    with pytest.raises(UnsupportedModelError, match="generate differs from its own forward"):
        bind_model(make_model(config))
