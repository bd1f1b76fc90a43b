"""What modules compute in code of their own: a row's bits are its own, and what stays torch's is told."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.models.test_experts import (
    DTYPES,
    NUM_ROWS,
    assert_rows_alone,
    best_level,
    experts_of,
    routing,
)
from treeshare.models.linear import KernelLinear
from treeshare.models.own_code import OwnCode, bind_own_code, bind_own_matmuls, company_reason

pytestmark = best_level


class Products(nn.Module):
    """Multiplies by its weight in every way that model code does."""

    def __init__(self, dtype):
        super().__init__()
        draws = torch.Generator().manual_seed(8)
        self.weight = nn.Parameter(torch.randn(34, 48, generator=draws).to(dtype), requires_grad=False)
        self.bias = nn.Parameter(torch.randn(34, generator=draws).to(dtype), requires_grad=False)

    def forward(self, x):
        turned = self.weight.t()
        return [
            nn.functional.linear(x, self.weight),
            x @ turned,
            torch.matmul(x, turned),
            x.matmul(turned),
            torch.mm(x, turned),
            torch.bmm(x.unsqueeze(0), turned.unsqueeze(0))[0],
            nn.functional.linear(x, self.weight, bias=self.bias),
        ]


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_matmuls_of_a_modules_own_code(dtype):
    module = Products(dtype)
    linear = nn.Linear(48, 34).to(dtype).requires_grad_(False)
    x = torch.randn(9, 48, generator=torch.Generator().manual_seed(9)).to(dtype)
    linear.weight.copy_(module.weight)
    linear.bias.copy_(module.bias)
    with_bias = KernelLinear(linear)(x)
    linear.bias.zero_()
    without = KernelLinear(linear)(x)
    assert bind_own_matmuls(nn.ModuleList([module])) == [module]
    *products, last = module(x)
    assert all(torch.equal(product, without) for product in products)
    assert torch.equal(last, with_bias)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_experts_that_the_kernel_does_not_know(dtype):
    """They run by their class's own code, with the kernel's matmuls, and not by a grouped matmul."""
    module = experts_of("qwen3_moe", dtype)
    assert bind_own_matmuls(nn.ModuleList([module])) == [module]
    x, chosen, weights = routing(dtype, 6)
    assert_rows_alone(lambda rows: module(x[rows], chosen[rows], weights[rows]), torch.arange(NUM_ROWS))
    assert company_reason(nn.ModuleList([module])) is None


@pytest.mark.parametrize(
    "product",
    [
        lambda x, weight: torch.einsum("ti,oi->to", x, weight),
        lambda x, weight: torch.addmm(x[:, :34], x, weight.t()),
        lambda x, weight: x.double() @ weight.double().t(),
    ],
    ids=["einsum", "addmm", "float64"],
)
def test_matmuls_that_stay_torchs_are_told(product):
    module = Products(torch.float32)
    module.forward = lambda x: product(x, module.weight)
    module.forward = OwnCode(module)
    assert company_reason(nn.ModuleList([module])) is None
    module(torch.randn(5, 48))
    assert "Products multiplies matrices by torch" in company_reason(nn.ModuleList([module]))


class Functions(nn.Module):
    """Functions of each number that torch computes by two codes."""

    def forward(self, x):
        return [
            nn.functional.silu(x),
            nn.functional.gelu(x),
            nn.functional.gelu(x, approximate="tanh"),
            torch.sigmoid(x),
            x.sigmoid(),
            nn.functional.sigmoid(x),
            torch.tanh(x),
        ]


@pytest.mark.parametrize("width", [1, 5, 40])
def test_functions_of_a_modules_own_code(width):
    """Torch's own are other bits for the last few numbers: the control."""
    x = torch.randn(999, width, generator=torch.Generator().manual_seed(10))
    own, module = Functions(), Functions()
    assert bind_own_code([module]) == [module]
    for plain_result, result in zip(own(x), module(x), strict=True):
        assert torch.all((plain_result - result).abs() <= 1e-6 * (1 + plain_result.abs()))
    for count in (1, 2, 7, 100):
        alone = [module(x[first : first + count]) for first in range(0, 999, 101)]
        whole = module(x)
        for first, results in zip(range(0, 999, 101), alone, strict=True):
            pairs = zip(results, whole, strict=True)
            assert all(torch.equal(result, all_rows[first : first + count]) for result, all_rows in pairs)


def test_torch_has_two_codes_for_a_sigmoid():
    x = torch.randn(999, generator=torch.Generator().manual_seed(10))
    assert not torch.equal(torch.cat([part.sigmoid() for part in x.split(1)]), x.sigmoid())
