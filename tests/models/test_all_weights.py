"""Weights that are changed later: none under two values, and none left behind."""

from __future__ import annotations

import pytest
import torch
import transformers

from tests.models.tiny import _COMMON, CONFIGS, make_model
from treeshare.errors import ConfigError
from treeshare.models.binding import bind_model
from treeshare.models.weights import change_weights, require_all_weights


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen3"])
def test_all_weights_are_asked_for(architecture):
    """Also of fused layers; a tied weight by one of its names is enough."""
    model = make_model(CONFIGS[architecture]())
    bind_model(model)
    whole = model.state_dict()
    require_all_weights(model, whole)
    tied = {"lm_head.weight"} if architecture == "gpt2" else set()
    for name in whole:
        weights = {key: value for key, value in whole.items() if key != name}
        if name in tied | {"transformer.wte.weight"}:
            require_all_weights(model, weights)
            continue
        with pytest.raises(ConfigError) as caught:
            require_all_weights(model, weights)
        assert str(caught.value) == (
            f"weights: got '{len(whole) - 1} of {len(whole)}, without {name}', "
            "expected all weights of the model that generates"
        )


def test_names_of_a_trainers_wrapper_are_not_weights():
    model = make_model(CONFIGS["llama"]())
    with pytest.raises(ConfigError, match="0 of"):
        require_all_weights(model, {f"module.{name}": value for name, value in model.state_dict().items()})


def test_one_weight_with_two_values_is_refused():
    model = make_model(transformers.LlamaConfig(**_COMMON, tie_word_embeddings=True))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    values = {"model.embed_tokens.weight": torch.ones(160, 64), "lm_head.weight": torch.zeros(160, 64)}
    with pytest.raises(ConfigError, match=r"^weights\['lm_head.weight'\]: got .*, expected equal values: "):
        change_weights(model, values)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert change_weights(model, dict.fromkeys(values, torch.ones(160, 64)))
    assert bool((model.lm_head.weight == 1).all())
