"""The contract of the backends: each against brute force, within the precision budget, on poisoned memory."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.attention.budget import Case, Forest, assert_within_budget
from tests.kernel_levels import LEVELS, WIDENING_LEVELS, num_threads, portable_by, using_kernels
from treeshare.attention import (
    CpuAttention,
    NativeAttention,
    ReferenceAttention,
    TritonAttention,
    build_layout,
    make_backend,
)
from treeshare.errors import ConfigError
from treeshare.kv import KVGeometry

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
BACKENDS = {
    "reference": (lambda geometry: ReferenceAttention(), ("float32", "bfloat16")),
    "cpu": (lambda geometry: CpuAttention(), ("float32", "bfloat16")),
    "triton": (TritonAttention, tuple(DTYPES)),
}
"""How each is made, and the dtypes that it computes in."""

FORESTS = {
    "one sequence": Case((-1,), (5,), ((0, 0),)),
    "one prefill": Case((-1,), (150,), (), prefilled=(0,), chunk=150),
    "length 1": Case((-1, 0, 0), (1, 1, 1), ((1, 0), (2, 1))),
    "page borders": Case((-1,), (64,), tuple((0, n) for n in (0, 14, 15, 16, 17, 31, 32, 33, 48))),
    "block borders": Case(
        (-1, 0, 0, 0, 0), (63, 64, 65, 127, 129), tuple((n, 3) for n in (0, 1, 1, 2, 3, 4))
    ),
    "equal nodes": Case(
        (-1, 0, 0, 0), (130, 50, 50, 50), tuple((n, n) for n in (1, 2, 3) for _ in range(16))
    ),
    "uneven nodes": Case(
        (-1, 0, 0, 0, 0), (70, 40, 45, 50, 30), ((1, 2), *((2, i) for i in range(40)), (4, 1), (4, 9))
    ),
    "a forest": Case((-1, -1, 1), (20, 90, 10), ((0, 1), (1, 0), (2, 20))),
    "depth 6": Case((-1, 0, 1, 2, 3, 4), (40, 3, 70, 1, 64, 9), ((5, 2), (5, 17), (2, 0), (0, 5))),
    "mixed step": Case((-1, 0, 0, 2), (80, 30, 64, 12), ((1, 4), (1, 8), (0, 1)), prefilled=(2, 3), chunk=37),
}


LONG = {"long nodes": Case((-1, 0, 1), (300, 500, 90), ((2, 3), (2, 40), (1, 5)), prefilled=(2,), chunk=60)}


PAIRS = [
    pytest.param((name, dtype), id=f"{name}-{dtype}", marks=[pytest.mark.slow] * (name == "triton"))
    for name, (_, dtypes) in sorted(BACKENDS.items())
    for dtype in dtypes
]
PAIRS += [
    pytest.param((level, dtype), id=f"{level}-{dtype}")
    for level in LEVELS
    for dtype in ("bfloat16", "float32")
]
"""Interpreted kernels are slow; ``test_triton.py`` runs a part of this suite every time."""


@pytest.fixture(params=PAIRS)
def pair(request):
    """A backend and a dtype that it computes in; a level of instructions means the compiled kernel."""
    name, dtype = request.param
    geometry = KVGeometry.uniform(num_layers=1, num_kv_heads=1, head_dim=64, dtype=DTYPES[dtype])
    if name not in BACKENDS:
        with using_kernels(name), num_threads(2):
            yield NativeAttention(), DTYPES[dtype]
        return
    if name == "triton":
        request.getfixturevalue("quick_interpreter")
    yield BACKENDS[name][0](geometry), DTYPES[dtype]


@pytest.fixture
def backend(pair):
    return pair[0]


@pytest.fixture
def dtype(pair):
    return pair[1]


@pytest.mark.parametrize("name", FORESTS)
def test_forests(backend, name, dtype):
    forest = Forest(replace(FORESTS[name], dtype=dtype))
    assert_within_budget(forest, forest.attend(backend))


@pytest.mark.parametrize("head_dim", [16, 64, 80, 96, 128, 256])
@pytest.mark.parametrize(("num_kv_heads", "group_size"), [(1, 1), (4, 1), (1, 8), (3, 3)])
def test_heads(backend, num_kv_heads, group_size, head_dim, dtype):
    case = replace(
        FORESTS["mixed step"],
        chunk=9,  # the oracle takes its time for each row
        num_kv_heads=num_kv_heads,
        group_size=group_size,
        head_dim=head_dim,
        dtype=dtype,
    )
    forest = Forest(case)
    assert_within_budget(forest, forest.attend(backend))


FEATURES = {
    "window 1": {"window": 1},
    "window 7": {"window": 7},
    "window 64": {"window": 64},
    "window 300": {"window": 300},
    "chunk 5": {"window_chunk": 5},
    "chunk 64": {"window_chunk": 64},
    "window in chunk": {"window": 20, "window_chunk": 48},
    "soft cap": {"soft_cap": 2.0, "score_scale": 3.0},
    "sinks": {"has_sinks": True},
    "narrow values": {"head_dim": 96, "value_dim": 64},
    "wide values": {"head_dim": 16, "value_dim": 48},
    "all": {"window": 33, "soft_cap": 5.0, "has_sinks": True, "head_dim": 48, "value_dim": 32},
}


@pytest.mark.parametrize("feature", FEATURES)
@pytest.mark.parametrize("name", ["depth 6", "page borders", "mixed step", "long nodes"])
def test_features(backend, name, feature, dtype):
    case = replace((FORESTS | LONG)[name], dtype=dtype, **FEATURES[feature])
    forest = Forest(case)
    assert backend.supports(case.spec)
    assert_within_budget(forest, forest.attend(backend))


@pytest.mark.parametrize(
    ("name", "feature"),
    [
        ("depth 6", "window 7"),
        ("page borders", "chunk 64"),
        ("mixed step", "window 64"),
        ("long nodes", "all"),
    ],
)
def test_what_no_row_sees_is_not_read(backend, name, feature, dtype):
    """It may have been given back: its memory is another's."""
    forest = Forest(replace((FORESTS | LONG)[name], dtype=dtype, **FEATURES[feature]))
    forest.give_back_unseen(segments=backend.name != "native")  # whose blocks of keys reach across segments
    assert_within_budget(forest, forest.attend(backend))


@pytest.mark.parametrize("feature", ["none", "all"])
@pytest.mark.parametrize("sharing", ["one-level", "none"])
@pytest.mark.parametrize("name", ["equal nodes", "depth 6", "mixed step"])
def test_rows_computed_alone(backend, name, sharing, feature, dtype):
    case = replace(FORESTS[name], sharing=sharing, dtype=dtype, **FEATURES.get(feature, {}))
    forest = Forest(case)
    assert_within_budget(forest, forest.attend(backend))


def test_one_backend_serves_layers_of_several_windows(backend, dtype):
    """Over one layout: what is planned for a window is not taken for another's."""
    forest = Forest(replace(FORESTS["mixed step"], dtype=dtype))
    for feature in ({}, {"window": 40}, {"window_chunk": 32}, {"window": 200}, {}):
        forest.case = replace(FORESTS["mixed step"], dtype=dtype, **feature)
        assert_within_budget(forest, forest.attend(backend))


class BrokenForest(Forest):
    """One number of one key, or of one value, is NaN: of the ``place``-th node or row, in the middle."""

    def __init__(self, case, place, which):
        self._left, self._which = place, which
        super().__init__(case)

    def _kv(self, n):
        pair = super()._kv(n)
        if self._left == 0:
            pair[self._which][n // 2, 0, 3] = torch.nan
        self._left -= 1
        return pair


@pytest.mark.parametrize("which", [0, 1], ids=["key", "value"])
@pytest.mark.parametrize("place", [0, 3, 5], ids=["shared", "causal", "private"])
def test_what_is_not_a_number_is_seen_by_whom_it_concerns(backend, place, which, dtype):
    """A broken model must not go unnoticed, nor spoil the rows of others."""
    forest = BrokenForest(replace(FORESTS["mixed step"], dtype=dtype), place, which)
    expected = forest.oracle()[0].isnan()
    found = forest.attend(backend).out.isnan()
    if which == 1:  # a value that a prompt's earlier tokens do not see has the weight 0, and 0 * NaN is NaN
        for chunk in forest.chunks:
            rows = forest.layout.causal[forest.chunks.index(chunk)]
            for isnan in (expected, found):
                isnan[rows.first_row : rows.last_row - 1] = False
    num_rows = forest.layout.num_rows
    assert 0 < int(expected[:num_rows].sum()) < found.numel()
    assert torch.equal(found[:num_rows], expected[:num_rows])


@pytest.mark.filterwarnings("ignore:All-NaN slice encountered")  # of the interpreter
def test_a_query_that_is_not_a_number(backend, dtype):
    forest = Forest(replace(FORESTS["mixed step"], dtype=dtype))
    forest.query[5, 2, 7] = torch.nan
    found = forest.attend(backend).out.isnan()
    assert found[5, 2].all()
    assert int(found.sum()) == found.shape[-1]


def test_large_scores(backend, dtype):
    """Scores of several hundreds, of either sign: nothing overflows, no padded key is seen."""
    forest = Forest(replace(FORESTS["uneven nodes"], score_scale=6.0, dtype=dtype))
    assert_within_budget(forest, forest.attend(backend))


def test_tiles(backend, dtype, monkeypatch):
    """More query rows than one tile of scores holds, more keys than one block."""
    monkeypatch.setattr("treeshare.attention.cpu.TILE_BYTES", 1)
    rows = tuple((1, 0) for _ in range(50))
    case = Case((-1, 0), (300, 200), rows, prefilled=(1,), chunk=150, num_kv_heads=1, dtype=dtype)
    forest = Forest(case)
    assert_within_budget(forest, forest.attend(backend))


BITS = {
    "plain": {},
    "all": {"window": 70, "soft_cap": 5.0, "has_sinks": True, "head_dim": 48, "value_dim": 36},
    "window 300": {"window": 300},
    "chunk 100": {"window_chunk": 100},
}


@pytest.mark.usefixtures("each_kernel_level")
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize(
    ("name", "feature"),
    [
        *((name, "plain") for name in ("equal nodes", "depth 6", "mixed step", "long nodes")),
        *(("long nodes", feature) for feature in BITS if feature != "plain"),
        *(("depth 6", feature) for feature in ("all", "chunk 100")),
    ],
)
def test_a_rows_bits_are_its_own(name, feature, dtype):
    """With the compiled kernel: rows of a node together or each alone, on two threads or on one."""
    case = replace((FORESTS | LONG)[name], dtype=DTYPES[dtype], **BITS[feature])
    results = []
    for sharing in ("tree", "one-level", "none"):
        for threads in (1, 2):
            forest = Forest(replace(case, sharing=sharing))
            with num_threads(threads):
                results.append(forest.attend(NativeAttention()))
    num_rows = forest.layout.num_rows
    for result in results[1:]:
        assert torch.equal(result.out[:num_rows], results[0].out[:num_rows])
        assert torch.equal(result.lse[:num_rows], results[0].lse[:num_rows])


@pytest.mark.usefixtures("each_kernel_level")
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("feature", BITS)
def test_a_sequence_alone_has_its_bits(feature, dtype):
    """Whose window begins elsewhere than that of others beside it."""
    lengths = (0, 5, 40, 100, 170, 230)
    case = replace(Case((-1,), (300,), ()), dtype=DTYPES[dtype], **BITS[feature])
    together = Forest(replace(case, decodes=tuple((0, length) for length in lengths)))
    expected = together.attend(NativeAttention())
    for row, source in enumerate(together.rows):
        layout = build_layout(together.store, [], [source])
        alone = NativeAttention().attend(
            *(x[row : row + 1] for x in (together.query, together.key, together.value)),
            layer=0,
            layout=layout,
            spec=case.spec,
            sinks=together.sinks,
        )
        assert torch.equal(alone.out[0], expected.out[row])
        assert torch.equal(alone.lse[0], expected.lse[row])


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        *(
            (name, {"head_dim": head_dim})
            for name in ("block borders", "mixed step", "long nodes")
            for head_dim in (64, 80)
        ),
        *(("long nodes", options) for options in BITS.values() if options),
    ],
)
def test_levels_have_the_same_bits(name, options, dtype):
    """In bfloat16 those without dot products of it."""
    case, results = replace((FORESTS | LONG)[name], dtype=DTYPES[dtype], **options), []
    for level in LEVELS if dtype == "float32" else WIDENING_LEVELS:
        with using_kernels(level):
            forest = Forest(case)
            results.append(forest.attend(NativeAttention()))
    if options.keys() - {"head_dim"}:
        with portable_by("portable"):
            results.append(Forest(case).attend(NativeAttention()))
    num_rows = forest.layout.num_rows
    for result in results[1:]:
        assert torch.equal(result.out[:num_rows], results[0].out[:num_rows])
        assert torch.equal(result.lse[:num_rows], results[0].lse[:num_rows])


@pytest.mark.usefixtures("each_kernel_level")
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize(("key_width", "value_width"), [(4, 1), (20, 12), (36, 130), (100, 100), (192, 128)])
def test_widths_of_no_whole_vectors(key_width, value_width, dtype):
    case = replace(LONG["long nodes"], head_dim=key_width, value_dim=value_width, dtype=DTYPES[dtype])
    forest = Forest(case)
    assert NativeAttention.can_read(forest.store.geometry)
    assert_within_budget(forest, forest.attend(NativeAttention()))


def test_a_layer_behind_others_of_another_shape(backend, dtype):
    forest = Forest(replace(FORESTS["mixed step"], layer=2, dtype=dtype))
    assert_within_budget(forest, forest.attend(backend))


def test_keys_that_an_earlier_call_has_stored(backend, dtype):
    """Another query reads them; that there are none to store is not taken for zeros."""
    forest = Forest(replace(FORESTS["mixed step"], dtype=dtype))
    forest.attend(backend)
    forest.key = forest.value = None
    forest.query = forest.query.flip(1)
    assert_within_budget(forest, forest.attend(backend))


def test_what_is_refused():
    geometry = KVGeometry.uniform(num_layers=1, num_kv_heads=1, head_dim=64, dtype=torch.float16)
    assert isinstance(make_backend("auto", geometry), CpuAttention)
    with pytest.raises(ConfigError, match=r"^backend: got 'native', expected kernels for this CPU"):
        make_backend("native", geometry)
    with pytest.raises(ConfigError, match=r"^backend: got 'flash', expected one of auto, native"):
        make_backend("flash", geometry)
