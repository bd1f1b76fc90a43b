"""Layers as programs of the kernels: as good as their own code, and the same weights."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tests.kernel_levels import LEVELS
from tests.models.tiny import CONFIGS, make_model
from tests.scripts.loading import BENCH, load_script
from tests.turns import slow_but
from treeshare.models import binding
from treeshare.models.binding import bind_model
from treeshare.models.fusion import binding as fusion_binding
from treeshare.models.fusion import decoder_layers, fuse_layers, unfuse_layers
from treeshare.models.fusion.binding import find_calls, find_programs
from treeshare.models.fusion.graph import Unfusable
from treeshare.models.fusion.judge import Call, judge
from treeshare.models.linear import unbind_linears, uses_kernel
from treeshare.models.self_check import SelfCheck
from treeshare.models.weights import change_weights
from treeshare.native import number_of

each_level = pytest.mark.usefixtures("each_kernel_level")
best_level = pytest.mark.skipif(not LEVELS, reason="no kernels, or none for this CPU")

RECIPES = load_script(BENCH, "layer_families")
SIZES = RECIPES.Sizes(hidden=64, heads=4, kv_heads=2, inner=96, layers=2, vocabulary=160, positions=1024)


DTYPES = [torch.bfloat16, torch.float32]

MAX_WEIGHTS = 200_000_000
"""Larger are those of families that name their sizes otherwise than most configurations do."""

KNOWN_REASONS = {
    "its layers compute topk, which no kernel does",  # mixtures of experts
    "its layers compute softmax, which no kernel does",
    "its layers compute repeat, which no kernel does",  # attention that subtracts two
    "its layers compute view_as_complex, which no kernel does",  # a rotary position of complex numbers
    "its layers choose experts beside other modules",  # attention that has experts, too
    "its weights are neither all bfloat16 nor all float32",  # a mixture whose router is float32
    "it does not call each of its layers once, in their order",  # a vision tower's list is longer
}


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request):
    return request.param


def calls(model):
    model.set_attn_implementation(binding.ATTENTION_NAME)
    return find_calls(model, decoder_layers(model))


def family(name, dtype=torch.bfloat16):
    return make_model(RECIPES.make_config(name, SIZES), dtype)


def assert_fused(name, dtype):
    """Fused and judged, layer by layer and as a whole."""
    bound = bind_model(family(name, dtype))
    assert bound.unfused_reason is None
    assert len(bound.fused) == SIZES.layers


@best_level
@pytest.mark.parametrize("name", RECIPES.FAMILIES)
def test_every_recipe(name):
    """In one of the dtypes; all of both on every level in the slow test."""
    assert_fused(name, DTYPES[list(RECIPES.FAMILIES).index(name) % 2])


@pytest.mark.slow
@each_level
@pytest.mark.parametrize("name", RECIPES.FAMILIES)
def test_every_recipe_on_every_level(name, dtype):
    assert_fused(name, dtype)


@pytest.mark.slow
@best_level
@pytest.mark.parametrize("name", sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
def test_every_family_that_loads(name):
    """Of all that transformers has: fused, or known to hold what no kernel computes."""
    try:
        with torch.device("meta"):
            num_weights = sum(weight.numel() for weight in family(name).parameters())
    except Exception:  # some cannot be made without memory, and are not large
        num_weights = 0
    if num_weights > MAX_WEIGHTS:
        pytest.skip("its sizes are its own")
    try:
        model = family(name)
        bound = bind_model(model)
    except Exception as error:  # not built of these sizes by transformers, or refused by name
        pytest.skip(f"{type(error).__name__}: {error}")
    if bound.unfused_reason is not None:
        assert bound.unfused_reason in KNOWN_REASONS


@each_level
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_model(architecture, dtype):
    """Fusing keeps names, values and shapes of the weights; unfusing gives the old forward back."""
    model = make_model(CONFIGS[architecture](), dtype)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    bound = bind_model(model)
    assert len(bound.fused) == 3
    after = model.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    unfuse_layers(model)
    unbind_linears(filter(uses_kernel, model.modules()))
    check = SelfCheck(model, bound.geometry, bound.calls)
    unfused_error = check.error()
    assert len(fuse_layers(model)[0]) == 3
    assert check.error() <= 4 * max(unfused_error, torch.finfo(dtype).eps)
    unfuse_layers(model)
    assert check.error() == unfused_error


@best_level
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "phi3"])
def test_weights_are_moved_and_not_copied(architecture):
    """Each weight lies inside its layer's joined ones, so a change in place reaches the kernels."""
    model = make_model(CONFIGS[architecture](), torch.bfloat16)
    fused = bind_model(model).fused
    for layer, forward in zip(decoder_layers(model), fused, strict=True):
        joined = {weight.untyped_storage().data_ptr() for weight in forward.joined}
        matrices = [weight for weight in layer.parameters() if weight.dim() == 2]
        assert {weight.untyped_storage().data_ptr() for weight in matrices} == joined
        assert sum(weight.numel() for weight in matrices) == sum(weight.numel() for weight in forward.joined)


@best_level
@pytest.mark.parametrize("architecture", slow_but(("llama", "gpt2", "phi3"), sorted(CONFIGS)))
def test_new_weights_reach_the_kernels(architecture):
    model, other = (make_model(CONFIGS[architecture](), torch.float32, seed=seed) for seed in (0, 1))
    bound = bind_model(model)
    expected = SelfCheck(other, bound.geometry, bound.calls)
    own = expected.check()

    change_weights(model, other.state_dict())
    expected._model = model
    assert expected.error() <= 8 * max(own, torch.finfo(torch.float32).eps)


def change_number(name, factor):
    def change(program):
        steps = [step for step in (*program.before, *program.after) if step.operation.kind == number_of(name)]
        assert steps
        for step in steps:
            step.operation.number *= factor

    return change


def change_kind(name, other):
    def change(program):
        steps = [step for step in (*program.before, *program.after) if step.operation.kind == number_of(name)]
        assert steps
        for step in steps:
            step.operation.kind = number_of(other)

    return change


def drop_bias(program):
    places = [(part, i) for part in (program.before, program.after) for i, step in enumerate(part)]
    found = [(part, i) for part, i in places if part[i].linears and part[i].linears.biases[0] is not None]
    assert found
    for part, i in found:
        linears = part[i].linears
        part[i] = part[i]._replace(linears=linears._replace(biases=(None,) * len(linears.biases)))


def drop(field):
    def change(program):
        for part in (program.before, program.after):
            for i, step in enumerate(part):
                if getattr(step, field) is not None:
                    part[i] = step._replace(**{field: None})

    return change


def toggle_flag(name, flag):
    def change(program):
        for step in (*program.before, *program.after):
            if step.operation.kind == number_of(name):
                step.operation.flags ^= number_of(flag)

    return change


def swap_heads(program):
    program.heads[1], program.heads[2] = program.heads[2], program.heads[1]


def swap_tables(program):
    program.tables.reverse()


def swap_operands(program):
    for step in program.after:
        if step.operation.kind == number_of("SILU"):
            step.operation.a.offset, step.operation.b.offset = (
                step.operation.b.offset,
                step.operation.a.offset,
            )


def shift_offset(program):
    program.before[-1].operation.a.offset += 1


FAULTS = {
    "epsilon": ("llama", change_number("RMS_NORM", 10.0)),
    "another epsilon": ("gpt2", change_number("LAYER_NORM", 10.0)),
    "multiplier": ("granite", change_number("MULTIPLY", 1.1)),
    "keys for values": ("llama", swap_heads),
    "sine for cosine": ("llama", swap_tables),
    "gate and up": ("llama", swap_operands),
    "halves for neighbours": ("llama", change_kind("ROTATE_HALVES", "ROTATE_PAIRS")),
    "neighbours for halves": ("cohere", change_kind("ROTATE_PAIRS", "ROTATE_HALVES")),
    "a bias left out": ("gpt2", drop_bias),
    "a bias of q, k and v left out": ("qwen2", drop_bias),
    "a norm's weight left out": ("llama", drop("weight")),
    "a norm's bias left out": ("gpt_neox", drop("bias")),
    "1 + weight": ("gemma", toggle_flag("RMS_NORM", "PLUS_ONE")),
    "weight for 1 + weight": ("llama", toggle_flag("RMS_NORM", "PLUS_ONE")),
    "the other half turned": ("llama", toggle_flag("ROTATE_HALVES", "FLIP")),
    "another activation": ("llama", change_kind("SILU", "GELU")),
    "tanh for erf": ("gpt_neox", change_kind("GELU", "GELU_TANH")),
    "no mean": ("gpt2", change_kind("LAYER_NORM", "RMS_NORM")),
    "numbers beside": ("gpt_neox", shift_offset),
}


@best_level
@pytest.mark.parametrize("fault", FAULTS)
def test_the_judge_finds_faults(fault):
    name, change = FAULTS[fault]
    call = calls(family(name, torch.float32))[0]
    judge(call, torch.float32)
    with pytest.raises(Unfusable, match="differ from its own by"):
        judge(call, torch.float32, change)


@pytest.mark.slow
@each_level
@pytest.mark.parametrize(
    "fault", sorted(set(FAULTS) - {"tanh for erf"})
)  # a difference of 5e-4 is no more than roundings
def test_the_judge_finds_faults_in_bfloat16(fault):
    name, change = FAULTS[fault]
    call = calls(family(name))[0]
    with pytest.raises(Unfusable, match="differ from its own by"):
        judge(call, torch.bfloat16, change)


@best_level
def test_layers_that_differ_are_told_apart():
    """SmolLM3 has layers without rotary positions; weights do not make layers differ."""
    config = RECIPES.make_config("smollm3", SIZES)
    config.no_rope_layers = [1, 0]
    model = make_model(config, torch.bfloat16)
    programs = find_programs(calls(model), torch.bfloat16)
    assert [len(program.tables) for program in programs] == [2, 0]
    keys = [call.trace().key() for call in calls(make_model(CONFIGS["llama"](), torch.bfloat16))]
    assert keys[0] == keys[1] == keys[2]


def odd_activation(layer):
    layer.mlp.act_fn = torch.nn.GELU()


def odd_number(layer):
    layer.input_layernorm.variance_epsilon *= 2


def odd_branch(layer):
    """Code that asks for the layer's number."""
    forward, norm = layer.mlp.forward, layer.mlp

    def branching(x):
        return forward(x) if norm.number % 3 != 1 else forward(-x)

    norm.number, norm.forward = layer.self_attn.layer_idx, branching


@pytest.fixture
def traced(monkeypatch):
    """The layers that are followed number by number."""
    found, trace = [], Call.trace
    monkeypatch.setattr(Call, "trace", lambda call: found.append(call.layer) or trace(call))
    monkeypatch.setattr(fusion_binding, "judge", lambda *_, **__: None)
    return found


@best_level
@pytest.mark.parametrize("change", [None, odd_activation, odd_number, odd_branch])
def test_one_layer_of_each_kind_is_traced(change, traced):
    """A layer that differs is found by what it does, whatever made it so."""
    model = make_model(CONFIGS["mistral"](), torch.bfloat16)
    layers = decoder_layers(model)
    if change is not None:
        change(layers[1])
    found = calls(model)
    programs = find_programs(found, torch.bfloat16)
    assert traced == layers[: 1 if change is None else 2]
    keys = [call.trace().key() for call in found]
    assert (keys[0] == keys[1]) == (change is None)
    assert keys[0] == keys[2]
    assert programs[2].attend == programs[0].attend


@best_level
@pytest.mark.parametrize("dtypes", [(torch.float16, torch.float16), (torch.float32, torch.bfloat16)])
def test_other_and_mixed_dtypes_are_not_fused(dtypes):
    model = make_model(CONFIGS["llama"](), dtypes[0])
    model.model.layers[1].input_layernorm.to(dtypes[1])
    assert fuse_layers(model) == ([], "its weights are neither all bfloat16 nor all float32")


@best_level
def test_layers_that_only_a_check_finds_wrong_say_so(monkeypatch):
    monkeypatch.setattr(binding, "_KERNEL_ERROR", 0.0)
    monkeypatch.setattr(binding.SelfCheck, "error", lambda self: 1.0)
    monkeypatch.setattr(binding.SelfCheck, "check", lambda self: 0.0)
    bound = bind_model(make_model(CONFIGS["llama"](), torch.bfloat16))
    assert bound.unfused_reason == "compiled layers are too far from the model's own logits"
    assert bind_model(make_model(CONFIGS["llama"]()), use_kernels=False).unfused_reason


class Mixes(torch.nn.Module):
    def forward(self, x):
        return x.cumsum(1)


class Sorts(torch.nn.Module):
    def forward(self, x):
        return x.sort(-1).values


class Remembers(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.seen = torch.ones(96, dtype=torch.bfloat16)

    def forward(self, x):
        return x * self.seen


@best_level
@pytest.mark.parametrize(
    ("activation", "reason"),
    [
        (Mixes, "its layers compute cumsum, which no kernel does"),
        (Sorts, "its layers compute sort, which no kernel does"),
        (Remembers, "its layers use a tensor that is neither a weight nor an argument"),
    ],
)
def test_what_no_recipe_describes_stays_as_it_is(activation, reason):
    model = make_model(CONFIGS["llama"](), torch.bfloat16)
    model.set_attn_implementation(binding.ATTENTION_NAME)
    model.model.layers[1].mlp.act_fn = activation()
    before = copy.deepcopy(model.state_dict())
    assert fuse_layers(model) == ([], reason)
    assert all("forward" not in vars(layer) for layer in model.model.layers)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@best_level
def test_layers_that_share_weights_stay_as_they_are():
    model = make_model(CONFIGS["llama"](), torch.bfloat16)
    model.set_attn_implementation(binding.ATTENTION_NAME)
    model.model.layers[1].mlp.up_proj.weight = model.model.layers[0].mlp.up_proj.weight
    assert fuse_layers(model) == ([], "its layers share weights")


@best_level
def test_another_activation_is_another_recipe():
    """A known class with a changed activation, or an extra part."""
    model = make_model(CONFIGS["llama"](), torch.bfloat16)
    model.model.layers[1].mlp.act_fn = torch.nn.GELU()
    model.model.layers[2].self_attn.q_norm = torch.nn.Identity()
    assert len(bind_model(model).fused) == 3
