"""Which compiled kernels are used, and that their levels agree."""

from __future__ import annotations

import ctypes
import importlib.util
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.kernel_levels import LEVELS, portable_by, using_kernels
from tests.native.operations import KINDS, run_operation
from treeshare.errors import ConfigError
from treeshare.native import ELEMENTS, kernel_level, kernel_levels, kernels, library
from treeshare.sampling import SamplingParams
from treeshare.sampling.compiled import draw_compiled
from treeshare.sampling.masks import mask_of, mask_without

needs_kernels = pytest.mark.skipif(not LEVELS, reason="no kernels, or none for this CPU")
needs_two_levels = pytest.mark.skipif(len(LEVELS) < 2, reason="this CPU has one level of kernels or none")

PARAMS = [
    {},
    {"temperature": 0.0},
    {"temperature": 0.3, "top_k": 5},
    {"top_p": 0.9},
    {"temperature": 1.7, "top_k": 300, "top_p": 0.5, "min_p": 0.01},
    {"logit_bias": {0: -2.5, 16: 4}},
]


@pytest.mark.parametrize("level", kernel_levels())
def test_a_level_by_name(level):
    with using_kernels(level):
        assert kernel_level() == level
        assert all((kernels(dtype) is None) == (level == "none") for dtype in ELEMENTS)
        assert kernels(torch.float16) is None


@pytest.mark.parametrize("wish", ["auto", ""])
def test_the_best_level(wish):
    """The first that this CPU has, but not one that is slower on it than those behind it."""
    loaded = library._load().library
    fast = [
        name
        for name in kernel_levels()
        if loaded is None or not loaded.treeshare_is_slow_level(name.encode())
    ]
    with using_kernels(wish):
        assert kernel_level() == fast[0]


@pytest.fixture
def with_levels(monkeypatch):
    """``with_levels(states)``: what ``treeshare_has_level`` says; None: no library. None of them is slow."""

    def replace(states):
        found = states and SimpleNamespace(
            treeshare_has_level=lambda name: states.get(name.decode(), -1),
            treeshare_is_slow_level=lambda name: 0,
        )
        monkeypatch.setattr(library, "_load", lambda: SimpleNamespace(library=found))

    return replace


LINES = [
    (None, "none (not built: amx, avx512, avx512vnni, avx512f, avx2, neon, portable)"),
    (
        {"amx": 0, "avx512": 0, "avx2": 1},
        "avx2, none (not on this CPU: amx, avx512; not built: avx512vnni, avx512f, neon, portable)",
    ),
    (
        {"avx512": 1, "avx2": 0},  # none implies another
        "avx512, none (not on this CPU: avx2; not built: amx, avx512vnni, avx512f, neon, portable)",
    ),
    (dict.fromkeys([level.name for level in library.LEVELS], 1), None),
]


@pytest.mark.parametrize("wish", ["sse", "neon", "AVX2"])
@pytest.mark.parametrize(("states", "expected"), LINES)
def test_a_level_that_is_not_there(states, expected, wish, with_levels):
    """Unknown, not built, or not on this CPU: one line lists them all."""
    with_levels(states)
    expected = expected or "amx, avx512, avx512vnni, avx512f, avx2, neon, portable, none"
    if wish in expected.partition("none")[0]:
        pytest.skip("it is there")
    with using_kernels(wish), pytest.raises(ConfigError) as caught:
        kernels(torch.float32)
    assert str(caught.value) == f"TREESHARE_KERNELS: got '{wish}', expected one of auto, {expected}; use auto"


def test_the_best_level_comes_first(with_levels, monkeypatch):
    names = tuple(level.name for level in library.LEVELS)
    with_levels(dict.fromkeys(names, 1))
    assert kernel_levels() == (*names, "none")
    optional = tuple(level._replace(automatic=level.name != "amx") for level in library.LEVELS)
    monkeypatch.setattr(library, "LEVELS", optional)
    with using_kernels("auto"):
        assert kernel_level() == "avx512"
    with using_kernels("amx"):
        assert kernel_level() == "amx"


@needs_kernels
def test_the_library_knows_no_other_level():
    has_level = library._load().library.treeshare_has_level
    assert {name: has_level(name) for name in (b"sse", b"", b"none")} == {b"sse": -1, b"": -1, b"none": -1}


def test_a_library_that_does_not_load(monkeypatch):
    """As one that clang built, whose OpenMP is not torch's: the kernels are not there, and it is said why."""
    load = ctypes.CDLL

    def fail(path, **options):
        if "_kernels" in path:
            raise OSError("undefined symbol: __kmpc_fork_call")
        return load(path, **options)

    monkeypatch.setattr(ctypes, "CDLL", fail)
    if importlib.util.find_spec("treeshare.native._kernels") is None:
        pytest.skip("nothing was built")
    loaded = library._load.__wrapped__()
    assert loaded[:2] == (None, "does not load: undefined symbol: __kmpc_fork_call")
    assert loaded.remedy.startswith("build it with gcc: CC=gcc CXX=g++ ")


def test_a_library_that_was_not_built(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert library._load.__wrapped__()[:2] == (None, "not built")


def every_bfloat16():
    return torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(torch.bfloat16)


def float32_of_every_size():
    """As many as there are bfloat16: of every exponent, with other bits below."""
    low = torch.randint(1 << 16, (1 << 16,), generator=torch.Generator().manual_seed(0))
    return ((torch.arange(-(1 << 15), 1 << 15) << 16) + low).to(torch.int32).view(torch.float32)


WORDS = {
    torch.bfloat16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
    torch.int64: torch.int64,
}
"""What has a number's bits, by its dtype."""


def of_levels(compute):
    """What ``compute`` gives with the kernels of each level."""
    results = []
    for level in LEVELS:
        with using_kernels(level):
            results.append(compute())
    with portable_by("portable"):  # the code of a CPU without any
        results.append(compute())
    return results


def assert_same_bits(results):
    """But for those of NaN: it comes from either operand."""
    bits = [[t.masked_fill(t != t, 0).view(WORDS[t.dtype]) for t in result] for result in results]
    nans = [[t != t for t in result] for result in results]
    for kind in (bits, nans):
        for other in kind[1:]:
            assert [torch.equal(a, b) for a, b in zip(kind[0], other, strict=True)] == [True] * len(other)


@needs_two_levels
@pytest.mark.parametrize("make_values", [every_bfloat16, float32_of_every_size])
@pytest.mark.parametrize("kind", KINDS)
def test_operations_agree_to_the_bit(kind, make_values):
    """Norms, rotary positions, activations, sums; of numbers of every size and NaN, rounded or not."""
    values, draws = make_values(), torch.Generator().manual_seed(0)
    a = values.repeat(3).view(-1, 96)
    b, c = (values[torch.randperm(len(values), generator=draws)].repeat(3).view(-1, 96) for _ in range(2))
    weight = torch.randn(96, generator=draws).to(values.dtype)
    weights = {"weight": weight, "bias": weight.flip(0)} if "NORM" in kind else {}

    def compute():
        return [
            run_operation(kind, a, b, c, flags=flags, number=1e-5, **weights)
            for flags in ((), ("ROUND", "ROUND_INNER"))
        ]

    assert_same_bits(of_levels(compute))


@needs_two_levels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocab_size", [17, 5000])
def test_drawing_agrees_to_the_bit(vocab_size, dtype):
    logits = (4 * torch.randn(len(PARAMS) * 5, vocab_size)).to(dtype)
    logits[1, 3], logits[2, :9] = torch.nan, -torch.inf
    params = [SamplingParams(**values) for values in PARAMS] * 5
    rows, uniforms = np.arange(len(params)), np.random.default_rng(0).random(4 * len(params))
    masks = [None, mask_of(vocab_size, range(0, vocab_size, 3)), mask_without(vocab_size, range(4)), None]
    masks = [masks[row % 4] for row in rows]

    def draw():
        drawn = draw_compiled(logits, rows, params, masks, 4 * np.arange(len(params) + 1), uniforms)
        return [torch.from_numpy(array) for array in drawn]

    assert_same_bits(of_levels(draw))
