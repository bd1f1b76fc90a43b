"""Mixtures of experts: as good as transformers' own, a row's bits are its own, weights stay in place."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch
from torch import nn

from tests.kernel_levels import LEVELS, LEVELS_AND_DTYPES, num_threads, using_kernels
from tests.models.mixtures import CONFIGS, Ungated, make_mixture
from treeshare.models import experts
from treeshare.models.binding import bind_model
from treeshare.models.experts import ExpertsForward, bind_experts
from treeshare.models.fusion.blocks import find_block
from treeshare.models.linear import bind_linears
from treeshare.models.own_code import OwnCode, bind_own_code, bind_own_matmuls, company_reason
from treeshare.models.weights import change_weights

best_level = pytest.mark.skipif(not LEVELS, reason="no kernels, or none for this CPU")
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
BY_TURNS = {name: list(DTYPES.values())[index % 2] for index, name in enumerate(CONFIGS)}
"""A dtype for each family; all of both are slow."""

KINDS = ["qwen3_moe", "gpt_oss", "ungated"]
"""Halves and a gate; transposed, by turns, biases and limits; no gate."""

NUM_ROWS, TOP_K = 64, 3

pytestmark = best_level


def experts_of(kind, dtype):
    """A module of experts with random weights."""
    if kind == "ungated":
        return Ungated().to(dtype).requires_grad_(False)
    model = make_mixture(kind, dtype).requires_grad_(False)
    (module, *_) = [
        module
        for module in model.modules()
        if hasattr(module, "down_proj") and hasattr(module, "gate_up_proj")
    ]
    return module


def routing(dtype, num_experts, num_rows=NUM_ROWS, seed=0):
    """Rows, their experts, and weights."""
    draws = torch.Generator().manual_seed(seed)
    x = torch.randn(num_rows, 64, generator=draws).to(dtype)
    chosen = torch.rand(num_rows, num_experts, generator=draws).argsort(-1)[:, :TOP_K]
    return x, chosen, torch.rand(num_rows, TOP_K, generator=draws).to(dtype)


def bound(module):
    """The module with the kernel's forward."""
    assert bind_experts(nn.ModuleList([module])) == [module]
    return module.forward


def assert_as_good(forward, module, x, chosen, weights):
    """As good as the module's own code, measured against it in float64."""
    own_forward = inspect.unwrap(type(module).forward)
    own = own_forward(module, x, chosen, weights).double()
    exact = own_forward(copy.deepcopy(plain(module)).double(), x.double(), chosen, weights.double())
    error, own_error = (
        (result.double() - exact).abs().amax(-1) for result in (forward(x, chosen, weights), own)
    )
    budget = 2 * own_error.max() + exact.abs().amax(-1) * torch.finfo(x.dtype).eps
    assert torch.all(error <= budget)


def plain(module):
    """A copy without a forward of its own."""
    forward = vars(module).pop("forward", None)
    try:
        return copy.deepcopy(module)
    finally:
        if forward is not None:
            module.forward = forward


def assert_added_up(forward, x, chosen, weights):
    """Bit by bit: what each expert gives alone, times its weight, in the order of ``chosen``, in float32."""
    ones = torch.ones(len(x), 1, dtype=x.dtype)
    total = torch.zeros(len(x), x.shape[1])
    for place in range(chosen.shape[1]):
        alone = forward(x, chosen[:, place : place + 1], ones)
        total += (alone * weights[:, place : place + 1]).float()
    assert torch.equal(forward(x, chosen, weights), total.to(x.dtype))


def assert_rows_alone(run, rows):
    """``run`` of rows gives a row the same bits whatever others there are, and wherever it stands."""
    whole = run(rows)
    for count in (1, 2, 7, 33):
        for first in range(0, len(rows) - count, 9):
            assert torch.equal(run(rows[first : first + count]), whole[first : first + count])
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(3))
    assert torch.equal(run(rows[order]), whole[order])
    with num_threads(1):
        assert torch.equal(run(rows), whole)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_experts(kind, dtype):
    module = experts_of(kind, dtype)
    x, chosen, weights = routing(dtype, len(module.down_proj))
    forward = bound(module)
    assert_as_good(forward, module, x, chosen, weights)
    assert_added_up(forward, x, chosen, weights)
    assert_rows_alone(lambda rows: forward(x[rows], chosen[rows], weights[rows]), torch.arange(NUM_ROWS))


@pytest.mark.parametrize(("level", "dtype"), LEVELS_AND_DTYPES)
def test_experts_on_every_level(level, dtype):
    with using_kernels(level):
        test_experts("gpt_oss", DTYPES[dtype])


def test_one_expert_takes_all_rows_and_another_none():
    module = experts_of("qwen3_moe", torch.bfloat16)
    x, _, weights = routing(torch.bfloat16, 6, num_rows=600)
    chosen = torch.zeros(600, TOP_K, dtype=torch.int64)
    chosen[:, 1:] = torch.tensor([5, 2])
    forward = bound(module)
    assert_as_good(forward, module, x, chosen, weights)
    assert torch.equal(forward(x[:5], chosen[:5], weights[:5]), forward(x, chosen, weights)[:5])


def test_no_rows():
    forward = bound(experts_of("qwen3_moe", torch.float32))
    x, chosen, weights = routing(torch.float32, 6, num_rows=0)
    assert forward(x, chosen, weights).shape == (0, 64)


def test_float32_weights_of_a_bfloat16_model():
    """Some routers give float32: an expert's output times its weight is then not rounded before the sum."""
    module = experts_of("qwen3_moe", torch.bfloat16)
    x, chosen, weights = routing(torch.bfloat16, 6)
    weights = weights.float() * 1.0001
    forward = bound(module)
    ones = torch.ones(len(x), 1)
    total = sum(forward(x, chosen[:, [k]], ones).float() * weights[:, [k]] for k in range(TOP_K))
    assert torch.equal(forward(x, chosen, weights), total.to(torch.bfloat16))


def _sorted_experts(x, chosen, weights):
    chosen, order = chosen.sort(-1)
    return x, chosen, weights.gather(-1, order)


def _skipped_expert(x, chosen, weights):
    return x, chosen.where(torch.arange(chosen.shape[1]) > 0, -1), weights


def _unweighted(x, chosen, weights):
    return x, chosen, torch.ones_like(weights)


def _normalised(x, chosen, weights):
    return x, chosen, weights / weights.sum(-1, keepdim=True)


def _wrong_expert(x, chosen, weights):
    return x, chosen.where(torch.arange(chosen.shape[1]) > 0, 0), weights


FAULTS = [_sorted_experts, _skipped_expert, _unweighted, _normalised, _wrong_expert]


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_seen(fault, monkeypatch):
    """By the check of sums; all that change more than an order also when a model is loaded."""
    module = experts_of("qwen3_moe", torch.float32)
    arguments = routing(torch.float32, 6)
    right = bound(plain(module))
    assert_added_up(right, *arguments)

    def faulty(x, chosen, weights):
        return right(*fault(x, chosen, weights)) if chosen.shape[1] > 1 else right(x, chosen, weights)

    with pytest.raises(AssertionError):
        assert_added_up(faulty, *arguments)
    own_call = ExpertsForward.__call__
    monkeypatch.setattr(ExpertsForward, "__call__", lambda self, *rest: own_call(self, *fault(*rest)))
    is_bound = bool(bind_experts(nn.ModuleList([module])))
    assert is_bound == (fault is _sorted_experts)


@pytest.mark.parametrize(
    "change",
    [
        lambda gate: lambda rows: gate(rows).neg(),
        lambda gate: lambda rows: gate(rows.flip(-1)),
        lambda gate: lambda rows: gate(rows) * 1.01,
    ],
    ids=["sign", "halves", "one per cent"],
)
def test_another_gate_is_seen(change, monkeypatch):
    module = experts_of("qwen3_moe", torch.float32)
    found = experts._find_gate

    def find(module, *rest):
        module = copy.copy(module)
        module._apply_gate = change(module._apply_gate)
        return found(module, *rest)

    monkeypatch.setattr(experts, "_find_gate", find)
    assert bind_experts(nn.ModuleList([module])) == []


@pytest.mark.parametrize("kind", KINDS)
def test_weights_have_one_place_in_memory(kind):
    """None is copied: those that are held transposed change their order in memory, and nothing else."""
    module = experts_of(kind, torch.bfloat16)
    before = {name: (tensor.clone(), tensor.data_ptr()) for name, tensor in module.named_parameters()}
    forward = bound(module)
    forward(*routing(torch.bfloat16, len(module.down_proj)))
    for name, tensor in module.named_parameters():
        value, address = before[name]
        assert torch.equal(tensor, value)
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
        assert (tensor.data_ptr() == address) == (kind != "gpt_oss" or name.endswith("bias"))
    held = [value for value in vars(forward).values() if isinstance(value, torch.Tensor)]
    assert held == []


@pytest.mark.parametrize("family", [pytest.param("qwen3_moe", marks=pytest.mark.slow), "gpt_oss"])
def test_changed_weights_are_used(family):
    """As if the model had been loaded with them."""
    dtype = torch.bfloat16
    model, other = make_mixture(family, dtype), make_mixture(family, dtype)
    new = {
        name: torch.randn(value.shape, generator=torch.Generator().manual_seed(5)).to(dtype) * 0.2
        for name, value in model.state_dict().items()
        if "experts" in name or "router" in name or "mlp.gate" in name
    }
    assert len(new) >= 3 * 2
    bind_model(model)
    change_weights(model, new)
    other.load_state_dict(new, strict=False)
    bind_model(other)
    x = torch.randn(1, 9, 64, generator=torch.Generator().manual_seed(6)).to(dtype)
    results = [mixture(each)(x) for each in (model, other)]
    first, second = (result[0] if isinstance(result, tuple) else result for result in results)
    assert torch.equal(first, second)


def mixture(model):
    """A block of a bound model that holds a router and experts."""
    layer = list(model.model.layers)[-1]
    found = find_block(layer, torch.zeros(1, 7, 64, dtype=model.dtype))
    return layer.get_submodule(found.name)


def bind_matmuls(model):
    bind_experts(model)
    bind_own_matmuls(model)
    bind_linears(model.modules())
    assert company_reason(model) is None


@pytest.mark.parametrize(("family", "dtype"), BY_TURNS.items(), ids=str)
def test_routers_and_experts_of_every_family(family, dtype):
    """A row alone and in company, ties among the experts' scores included."""
    model = make_mixture(family, dtype)
    bind_matmuls(model)
    blocks = [
        module for name, module in model.named_modules() if name.endswith(("mlp", "moe", "feed_forward"))
    ]
    blocks = [block for block in blocks if len(list(block.children())) > 1 and holds_experts(block)]
    assert blocks
    bind_own_code(blocks)
    x = torch.randn(NUM_ROWS, 64, generator=torch.Generator().manual_seed(7)).to(dtype)
    x[3] = 0  # all experts have one score

    def run(rows):
        result = blocks[-1](rows.unsqueeze(0))
        return (result[0] if isinstance(result, tuple) else result).view(rows.shape)

    assert_rows_alone(run, x)


@pytest.mark.slow
@pytest.mark.parametrize(("level", "dtype"), LEVELS_AND_DTYPES)
@pytest.mark.parametrize("family", CONFIGS)
def test_every_family_on_every_level(family, level, dtype):
    with using_kernels(level):
        test_routers_and_experts_of_every_family(family, DTYPES[dtype])


def holds_experts(block):
    return any(
        isinstance(vars(module).get("forward"), (ExpertsForward, OwnCode)) for module in block.modules()
    )


FUSED = [
    *("qwen3_moe", "gpt_oss"),
    *(
        pytest.param(name, marks=pytest.mark.slow)
        for name in (
            "mixtral",
            "qwen2_moe",
            "olmoe",
            "granitemoe",
            "ernie4_5_moe",
            "minimax_m2",
            "glm4_moe",
            "hunyuan_v1_moe",
        )
    ),
]


@pytest.mark.parametrize("family", FUSED)
def test_layers_with_experts_are_fused(family):
    """In bfloat16, where a rounding may choose another expert: the check when it is loaded takes the same."""
    bound_model = bind_model(make_mixture(family, torch.bfloat16))
    assert bound_model.unfused_reason is None
    assert len(bound_model.fused) == 2


def test_without_kernels_the_promise_is_not_made():
    model = make_mixture("qwen3_moe", torch.float32)
    assert "Qwen3Moe" in company_reason(model)
    bind_matmuls(model)
    assert company_reason(make_mixture("qwen3_moe", torch.float32)) is not None
    with using_kernels("none"):
        other = make_mixture("qwen3_moe", torch.float32)
        assert bind_experts(other) == bind_own_matmuls(other) == []


@pytest.mark.parametrize(
    "company",
    [lambda rows: len(rows) * 2.0**-20, lambda rows: (torch.arange(len(rows)) == 40).float().unsqueeze(1)],
    ids=["by number", "by place"],
)
def test_company_is_seen(company):
    """The control: a result that depends on the number of rows, and one that depends on a row's place."""
    x = torch.randn(NUM_ROWS, 8)
    assert_rows_alone(lambda rows: x[rows], torch.arange(NUM_ROWS))
    with pytest.raises(AssertionError):
        assert_rows_alone(lambda rows: x[rows] * (1 + company(rows)), torch.arange(NUM_ROWS))
