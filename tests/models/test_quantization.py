"""Int8 weights: what a model of them computes, what it keeps in memory, and what is refused."""

from __future__ import annotations

import copy
import os
import shutil

import pytest
import torch
import transformers
from torch import nn

from tests.kernel_levels import LEVELS, using_kernels
from tests.models.test_fusion import RECIPES, SIZES, calls, change_number, drop, family, swap_heads
from tests.models.tiny import CONFIGS, make_model
from treeshare.errors import ConfigError, ModelLoadError, UnsupportedModelError
from treeshare.models import load_model
from treeshare.models.binding import bind_model
from treeshare.models.fusion.graph import Unfusable
from treeshare.models.fusion.judge import judge
from treeshare.models.quantization import (
    Int8Weights,
    OracleLinear,
    quantize_model,
    quantized_linears,
    weights_in_codes,
)
from treeshare.models.quantization import weights as weights_module
from treeshare.models.step import running
from treeshare.models.weights import change_weights
from treeshare.native import number_of

pytestmark = pytest.mark.skipif(not LEVELS, reason="no compiled library, or none for this CPU")

TOKENS = torch.tensor([[5, 9, 2, 140, 7, 7, 31]])


def some(first, *others):
    """Values of a parameter, all but the first slow."""
    return [first, *(pytest.param(other, marks=pytest.mark.slow) for other in others)]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "treeshare" / "models"


def quantized(name, dtype=torch.float32):
    model = make_model(CONFIGS[name](), dtype) if name in CONFIGS else family(name, dtype)
    quantize_model(model)
    return model


def transform_width(linear):
    num_inputs = linear.weight.shape[1] if isinstance(linear, nn.Linear) else linear.weight.shape[0]
    return min(num_inputs & -num_inputs, 64)


@pytest.mark.parametrize("shape", [(48, 64), (5, 96), (17, 40), (33, 7), (16, 192)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_computes_what_the_oracle_does(shape, dtype):
    torch.manual_seed(0)
    linear = nn.Linear(*reversed(shape)).to(dtype).requires_grad_(requires_grad=False)
    x = torch.randn(9, shape[1]).to(dtype)
    found = Int8Weights.of(linear.weight, linear.bias).multiply(x)
    expected = OracleLinear(linear, weights_module.int8_format(shape[1]).transform)(x)
    scale = expected.abs().max()
    error = (found.double() - expected.double()).abs().max() / scale
    assert error <= max(torch.finfo(dtype).eps, 1e-6)  # no number lies between two codes here


def test_rows_of_a_table_are_as_near_as_codes():
    table = torch.randn(50, 96, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([49, 0, 7, 7])
    found = Int8Weights.of(table).rows(ids, torch.float32)
    step = table[ids].abs().amax(-1, keepdim=True) * 32**0.5 / 127  # of the transform's largest number
    assert ((found - table[ids]).abs() <= step / 2 * 32**0.5).all()
    for wrong in (-1, 50):
        with pytest.raises(IndexError):
            Int8Weights.of(table).rows(torch.tensor([wrong]), torch.float32)


@pytest.mark.parametrize("name", some("gpt2", *sorted(set(CONFIGS) - {"gpt2"})))
def test_a_model_computes_what_the_oracle_does(name):
    """Each linear layer and the embedding inside a model; whole layers are judged when they are bound.

    A number that lies between two codes may get the other, of weights or of activations.
    """
    model = make_model(CONFIGS[name]())
    plain = copy.deepcopy(model)
    quantize_model(model)
    seen = []

    def compare(module, arguments, output):
        (x,), own = arguments, plain.get_submodule(names[module])
        expected = OracleLinear(own, transform_width(own))(x) if x.is_floating_point() else own(x)
        budget = expected.abs().max() / (256 if x.is_floating_point() else 100)
        seen.append((output - expected).abs().max() <= budget)

    names = {module: name for name, module in model.named_modules() if "forward" in vars(module)}
    for module in names:
        module.register_forward_hook(compare)
    with torch.inference_mode():
        model(input_ids=TOKENS, use_cache=False)
    assert len(seen) == len(names) == len(weights_in_codes(model))
    assert all(seen)


def test_a_fused_model_keeps_no_float_weight():
    config = transformers.LlamaConfig(
        **{**CONFIGS["llama"]().to_diff_dict(), "hidden_size": 256, "intermediate_size": 512}
    )
    model = make_model(config, torch.bfloat16)
    before = sum(p.numel() * 2 for p in model.parameters())
    quantize_model(model)
    bind_model(model)
    storages = {}
    for tensor in (
        *model.parameters(),
        *(t for w in weights_in_codes(model).values() for t in w.tensors.values()),
    ):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    assert sum(storages.values()) <= 0.6 * before


@pytest.mark.parametrize("name", some("gpt_neox", *sorted(set(RECIPES.FAMILIES) - {"gpt_neox"})))
def test_every_family_is_bound_or_refused_by_name(name):
    model, refused = family(name, torch.bfloat16), None
    quantize_model(model)
    try:
        bound = bind_model(model)
    except UnsupportedModelError as error:
        refused = str(error)
    if refused is None:
        assert len(bound.fused) == SIZES.layers
    else:
        assert " int8 weights: " in refused
        assert "; load it without quantization" in refused


# -- the judge ----------------------------------------------------------------------------------------------


def of_kind(program, *names):
    numbers = set(map(number_of, names))
    steps = [step for step in (*program.before, *program.after) if step.operation.kind in numbers]
    assert steps
    return steps


def first_weights_twice(program):
    """Keys by the weights of queries, which have as many outputs here."""
    for part in (program.before, program.after):
        for i, step in enumerate(part):
            if len(step.coded) > 1:
                first, *rest = step.coded
                part[i] = step._replace(coded=(*rest, first))


def codes_of_another_row(program):
    for step in of_kind(program, "LINEAR_INT8"):
        step.operation.a.offset += 16


FAULTS = {
    "weights in another order": first_weights_twice,
    "codes beside": codes_of_another_row,
    "epsilon": change_number("RMS_NORM", 10.0),
    "keys for values": swap_heads,
    "a norm's weight left out": drop("weight"),
}


@pytest.fixture
def call():
    """Of a layer that has as many keys as queries."""
    config = transformers.LlamaConfig(**{**CONFIGS["llama"]().to_diff_dict(), "num_key_value_heads": 4})
    model = make_model(config)
    quantize_model(model)
    return calls(model)[0]


@pytest.mark.parametrize("fault", FAULTS)
def test_the_judge_finds_faults(call, fault):
    judge(call, torch.float32)
    with pytest.raises(Unfusable, match="differ from its own by"):
        judge(call, torch.float32, FAULTS[fault])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("fault", ["scales", "transform", "codes", "sums"])
def test_the_judge_finds_wrong_weights(fault, dtype, monkeypatch):
    """One of all layers' has scales that are 2 % too large, another transform, or codes of other inputs."""
    call = calls(quantized("llama", dtype))[0]
    judge(call, dtype)
    made = Int8Weights.of.__func__

    def faulty(cls, weight, bias=None, transform=None):
        if fault == "transform" and len(weight) == 96:
            return made(cls, weight, bias, transform // 2)
        weights = made(cls, weight, bias, transform)
        if fault == "scales" and weights.packed.num_outputs == 96:
            weights.packed.scales.mul_(1.02)
        if fault == "codes":
            weights.packed.codes.copy_(weights.packed.codes.roll(1, dims=1))
        if fault == "sums":
            weights.packed.scales.zero_()
        return weights

    monkeypatch.setattr(Int8Weights, "of", classmethod(faulty))
    with pytest.raises(Unfusable, match="differ from its own by"):
        judge(call, dtype)


# -- the cache ----------------------------------------------------------------------------------------------


def logits(loaded):
    with running(_Mixer()):
        return loaded.model(input_ids=TOKENS, use_cache=False).logits


class _Mixer:
    def attend(self, query, key, value, spec, sinks=None):
        return query + key.repeat_interleave(query.shape[1] // key.shape[1], 1)


@pytest.mark.parametrize("name", some("qwen2", "llama", "phi3", "gpt2", "gpt_neox"))
def test_what_is_kept_is_the_same_model(model_dir, cache, name, capsys):
    first = load_model(model_dir(name), quantization="int8")
    assert "writing int8 weights" in capsys.readouterr().err
    second = load_model(model_dir(name), quantization="int8")
    assert capsys.readouterr().err == ""
    assert second.quantization == "int8"
    assert second.fingerprint() == first.fingerprint() != load_model(model_dir(name)).fingerprint()
    assert torch.equal(logits(second), logits(first))
    assert [folder.name for folder in cache.iterdir()] == [next(cache.glob("*-int8-v1")).name]


def test_other_files_are_other_weights(model_dir, cache, tmp_path):
    folder = shutil.copytree(model_dir("llama"), tmp_path / "llama")
    first = load_model(folder, quantization="int8").fingerprint()
    make_model(CONFIGS["llama"](), seed=1).save_pretrained(folder)
    assert load_model(folder, quantization="int8").fingerprint() != first
    assert len(list(cache.iterdir())) == 2


def test_a_damaged_folder_says_so(model_dir, cache):
    load_model(model_dir("llama"), quantization="int8")
    file = next(cache.glob("*/weights.safetensors"))
    content = file.read_bytes()
    file.write_bytes(b"\xff" * 64 + content[64:])
    with pytest.raises(ModelLoadError, match=r"^model cache: cannot read .*; remove this folder$"):
        load_model(model_dir("llama"), quantization="int8")
    file.write_bytes(content[:-1])  # not as long as its list says: made anew
    assert load_model(model_dir("llama"), quantization="int8")
    assert file.read_bytes() == content


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_without_a_cache_it_is_quantised_each_time(model_dir, tmp_path, monkeypatch, capsys):
    (tmp_path / "cache").mkdir(mode=0o500)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert load_model(model_dir("llama"), quantization="int8")
    assert "model cache: cannot write" in capsys.readouterr().err


def test_a_tied_head_reads_the_table(cache, tmp_path):
    config = transformers.LlamaConfig(**{**CONFIGS["llama"]().to_diff_dict(), "tie_word_embeddings": True})
    make_model(config).save_pretrained(tmp_path / "tied")
    for _ in range(2):
        codes = weights_in_codes(load_model(tmp_path / "tied", quantization="int8").model)
        assert codes["lm_head.weight"] is codes["model.embed_tokens.weight"]


# -- new weights --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", some("qwen2", "llama", "olmo2"))
def test_new_weights_are_quantised_as_a_files_are(model_dir, cache, tmp_path, name):
    other = make_model(CONFIGS[name](), seed=1)
    other.save_pretrained(tmp_path / "other")
    loaded = load_model(model_dir(name), "bfloat16", quantization="int8")
    before = loaded.fingerprint()
    change_weights(loaded.model, other.state_dict())
    new = load_model(tmp_path / "other", "bfloat16", quantization="int8")
    assert before != loaded.fingerprint() == new.fingerprint()
    assert torch.equal(logits(loaded), logits(new))


def test_new_weights_come_all_or_none(model_dir, cache):
    loaded = load_model(model_dir("qwen2"), quantization="int8")
    before, results = loaded.fingerprint(), logits(loaded)
    values = {name: torch.randn(value.shape) for name, value in loaded.model.state_dict().items()}
    assert any(name.endswith("q_proj.bias") for name in values)
    values["model.norm.weight"] = torch.ones(64)
    values["model.layers.2.mlp.down_proj.weight"][3, 3] = torch.nan
    with pytest.raises(ConfigError, match=r"down_proj.weight'\]: cannot be copied; .* not finite"):
        change_weights(loaded.model, values)
    assert loaded.fingerprint() == before
    assert torch.equal(logits(loaded), results)
    with pytest.raises(
        ConfigError, match="got 'a placeholder of int8 weights', expected a tensor with values"
    ):
        change_weights(loaded.model, loaded.model.state_dict())


# -- refusals -----------------------------------------------------------------------------------------------


def test_unknown_names_and_missing_kernels(model_dir):
    with pytest.raises(ConfigError, match=r"^quantization: got 'int4', expected int8 or none$"):
        load_model(model_dir("llama"), quantization="int4")
    with pytest.raises(
        ConfigError, match=r"^quantization: got 'int8 on cuda', expected the CPU; use device cpu"
    ):
        load_model(model_dir("llama"), device="cuda", quantization="int8")
    with (
        using_kernels("none"),
        pytest.raises(ConfigError, match="got 'int8', expected compiled kernels; there"),
    ):
        load_model(model_dir("llama"), quantization="int8")


def test_layers_that_are_not_fused_are_refused_by_name():
    model = make_model(CONFIGS["llama"]())
    model.model.layers[0].mlp.act_fn = nn.Softplus()
    quantize_model(model)
    message = r"^llama: int8 weights: its layers are not compiled \(.*\); load it without quantization$"
    with pytest.raises(UnsupportedModelError, match=message):
        bind_model(model)


def test_what_differs_between_cpus_is_refused_by_name():
    model = make_model(CONFIGS["llama"]())
    model.model.norm.register_forward_hook(lambda module, arguments, output: output.tanh().atanh())
    quantize_model(model)
    message = r"^llama: int8 weights: its forward needs torch's tanh.*; load it without quantization$"
    with pytest.raises(UnsupportedModelError, match=message):
        bind_model(model)


def test_numbers_that_are_not_finite_have_no_codes():
    model = make_model(CONFIGS["llama"]())
    model.model.layers[1].mlp.up_proj.weight.data[2, 2] = torch.inf
    with pytest.raises(
        UnsupportedModelError, match=r"^model.layers.1.mlp.up_proj.weight: its numbers are not"
    ):
        quantize_model(model)


def test_linear_layers_are_found_by_name():
    assert len(quantized_linears(quantized("llama"))) == 3 * 7 + 1


def test_heads_that_the_attention_kernel_does_not_take_are_refused():
    config = transformers.LlamaConfig(**{**CONFIGS["llama"]().to_diff_dict(), "head_dim": 10})
    model = make_model(config)
    quantize_model(model)
    with pytest.raises(
        UnsupportedModelError, match=r"^llama: int8 weights: .* multiple of 4 numbers, not of 10;"
    ):
        bind_model(model)
