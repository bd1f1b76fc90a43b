"""Checkpoints in eight and four bits: the weights are what their numbers say, by formulas written here."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from tests.models.tiny import _COMMON, CONFIGS, make_model
from treeshare.errors import TreeshareError
from treeshare.models import load_model

_BLOCK = 32


def _save(folder, model, change, quantization):
    """Save a model, its tensors changed and its configuration completed."""
    model.save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    save_file(change(tensors), folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": quantization}))


def _fp8(tensors, expected):
    """Matrices of layers in float8 by blocks; ``expected`` gets what they mean."""
    packed = {}
    for name, value in tensors.items():
        if "_proj" not in name:
            packed[name] = expected[name] = value
            continue
        rows, columns = value.shape
        blocks = value.reshape(rows // _BLOCK, _BLOCK, columns // _BLOCK, _BLOCK)
        scales = blocks.abs().amax((1, 3)) / 448
        codes = (blocks / scales[:, None, :, None]).to(torch.float8_e4m3fn)
        expected[name] = (codes.float() * scales[:, None, :, None]).reshape(value.shape)
        packed[name] = codes.reshape(value.shape)
        packed[f"{name}_scale_inv"] = scales
    return packed


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_float8(tmp_path, dtype):
    expected = {}
    quantization = {
        "quant_method": "fp8",
        "weight_block_size": [_BLOCK, _BLOCK],
        "activation_scheme": "dynamic",
    }
    _save(tmp_path, make_model(CONFIGS["llama"]()), lambda tensors: _fp8(tensors, expected), quantization)
    loaded = load_model(tmp_path, dtype)
    weights = loaded.model.state_dict()
    assert loaded.dtype == dtype
    assert expected.keys() <= weights.keys() | {"lm_head.weight"}
    wrong = [
        name for name, value in expected.items() if not torch.equal(weights[name], value.to(weights[name]))
    ]
    assert wrong == []


_FP4 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])


def test_mxfp4(tmp_path):
    config = transformers.GptOssConfig(
        **_COMMON | {"intermediate_size": 64}, head_dim=16, num_local_experts=4
    )
    draws = torch.Generator().manual_seed(0)
    expected = {}

    def change(tensors):
        for name in [
            name for name in tensors if name.endswith(("experts.gate_up_proj", "experts.down_proj"))
        ]:
            experts, inputs, outputs = tensors.pop(name).shape
            blocks = torch.randint(256, (experts, outputs, inputs // 32, 16), generator=draws).to(torch.uint8)
            scales = torch.randint(120, 124, blocks.shape[:-1], generator=draws).to(torch.uint8)
            codes = torch.stack([blocks & 15, blocks >> 4], -1).flatten(-2).int()  # the low half comes first
            numbers = _FP4[codes & 7] * (1 - 2 * (codes >> 3)) * torch.exp2(scales.float() - 127)[..., None]
            expected[name] = numbers.reshape(experts, outputs, inputs).transpose(1, 2)
            tensors |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        return tensors

    _save(tmp_path, make_model(config), change, {"quant_method": "mxfp4"})
    weights = load_model(tmp_path, "float32").model.state_dict()
    assert len(expected) == 2 * config.num_hidden_layers
    assert all(torch.equal(weights[name], value) for name, value in expected.items())


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "nobody-knows-it"])
def test_other_ways_of_quantising_are_refused_by_name(tmp_path, method):
    _save(tmp_path, make_model(CONFIGS["llama"]()), dict, {"quant_method": method, "bits": 4})
    with pytest.raises(TreeshareError) as caught:
        load_model(tmp_path, "float32")
    assert method in str(caught.value)
    assert "\n" not in str(caught.value)
