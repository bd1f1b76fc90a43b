"""Checkpoints that are int8 already: compressed-tensors' W8A8 by channel and token."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tests.kernel_levels import LEVELS
from tests.models.tiny import CONFIGS, make_model
from treeshare.errors import ModelLoadError, UnsupportedModelError
from treeshare.models import load_model
from treeshare.models.quantization import OracleLinear, quantized_linears

pytestmark = [
    pytest.mark.skipif(not LEVELS, reason="no compiled library, or none for this CPU"),
    pytest.mark.usefixtures("private_cache"),
]

W8A8 = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "ignore": ["lm_head"],
    "kv_cache_scheme": None,
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "output_activations": None,
            "weights": {
                "num_bits": 8,
                "type": "int",
                "symmetric": True,
                "strategy": "channel",
                "dynamic": False,
            },
            "input_activations": {
                "num_bits": 8,
                "type": "int",
                "symmetric": True,
                "strategy": "token",
                "dynamic": True,
            },
        }
    },
}


def write(folder, name="qwen2", about=W8A8, change=lambda tensors: None):
    """A checkpoint of a random model, whose scales are wider than they need be."""
    model = make_model(CONFIGS[name](), torch.bfloat16)
    model.save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    for key in [f"{name}.weight" for name, module in model.named_modules() if type(module) is nn.Linear]:
        if key != "lm_head.weight":
            weight = tensors[key].float()
            scale = (weight.abs().amax(-1, keepdim=True) / 100).bfloat16()
            tensors[key] = (weight / scale.float()).round().to(torch.int8)
            tensors[f"{key}_scale"] = scale
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": about}))
    return folder


def test_it_computes_with_its_own_codes_and_scales(tmp_path):
    folder = write(tmp_path / "w8a8")
    loaded = load_model(folder, quantization="int8")
    assert (loaded.dtype, loaded.quantization, len(loaded.fused)) == ("bfloat16", "int8", 3)
    linears = quantized_linears(loaded.model)
    assert len(linears) == 3 * 7  # not the head
    tensors = load_file(folder / "model.safetensors")
    for name, weights in linears.items():
        codes, scales = tensors[f"{name}.weight"], tensors[f"{name}.weight_scale"].float()
        assert torch.equal(weights.packed.scales[0, : len(scales)], scales[:, 0])
        module = nn.Linear(codes.shape[1], len(codes), bias=weights.packed.bias is not None)
        module.weight.data = codes.float() * scales
        if weights.packed.bias is not None:
            module.bias.data = weights.packed.bias
        x = torch.randn(5, codes.shape[1], generator=torch.Generator().manual_seed(0))
        expected = Dequantised(module)(x)
        assert ((weights.multiply(x) - expected).abs().max() <= expected.abs().max() / 256).all()


class Dequantised:
    """A layer whose weights are what codes and scales stand for; only its input is quantised."""

    def __init__(self, module):
        self._module = module

    def __call__(self, x):
        identity = nn.Linear(x.shape[1], x.shape[1], bias=False)
        identity.weight.data = torch.eye(x.shape[1])
        module = copy.deepcopy(self._module).double()
        return module(OracleLinear(identity, 1)(x.double())).float()


@pytest.mark.slow
def test_the_same_files_give_the_same_model(tmp_path):
    folder = write(tmp_path / "w8a8")
    first, second = (load_model(folder, quantization="int8").fingerprint() for _ in range(2))
    assert first == second


def without(*path):
    about = copy.deepcopy(W8A8)
    place = about
    for key in path[:-2]:
        place = place[key]
    place[path[-2]] = path[-1]
    return about


GROUP = ("config_groups", "group_0")

OTHERS = {
    "gptq": ({"quant_method": "gptq", "bits": 4}, r"quantised already \(gptq\)"),
    "4 bits": (without(*GROUP, "weights", "num_bits", 4), r"weights.num_bits 4"),
    "groups": (without(*GROUP, "weights", "strategy", "group"), "weights.strategy 'group'"),
    "static": (without(*GROUP, "input_activations", "dynamic", False), "input_activations.dynamic False"),
    "asymmetric": (
        without(*GROUP, "input_activations", "symmetric", False),
        "input_activations.symmetric False",
    ),
    "weights alone": (without(*GROUP, "input_activations", None), "input_activations.num_bits None"),
    "packed": (
        without("format", "pack-quantized"),
        r"quantised already \(compressed-tensors, pack-quantized\)",
    ),
    "quantised KV": (without("kv_cache_scheme", {"num_bits": 8}), "kv_cache_scheme"),
    "no groups": (without("config_groups", {}), "config_groups"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_formats_are_refused_by_name(tmp_path, name):
    about, message = OTHERS[name]
    folder = write(tmp_path / "other", about=about)
    with pytest.raises(
        UnsupportedModelError, match=f"int8 weights: .*{message}.*; load the model that it was"
    ):
        load_model(folder, quantization="int8")


def test_lost_scales_and_weights_are_named(tmp_path):
    key = "model.layers.1.mlp.up_proj.weight"
    folder = write(tmp_path / "scale", change=lambda tensors: tensors.pop(f"{key}_scale"))
    with pytest.raises(ModelLoadError, match=f"codes without scales: {key}"):
        load_model(folder, quantization="int8")
    folder = write(tmp_path / "weight", change=lambda tensors: tensors.pop("model.norm.weight"))
    with pytest.raises(ModelLoadError, match=r"not its weights: model\.norm\.weight"):
        load_model(folder, quantization="int8")
