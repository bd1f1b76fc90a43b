"""The Triton backend, interpreted: a part of the contract suite, and what only this backend promises."""

from __future__ import annotations

import importlib.util
import itertools
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from tests.attention.budget import Case, Forest, assert_within_budget
from tests.attention.test_backends import DTYPES, FEATURES, FORESTS
from treeshare.attention import TritonAttention, build_layout, make_backend
from treeshare.attention.triton.arrays import PlanKey
from treeshare.attention.triton.tables import KernelTables
from treeshare.errors import ConfigError
from treeshare.installation import how_to_add
from treeshare.kv import KVGeometry, KVStore

GEOMETRY = KVGeometry.uniform(num_layers=1, num_kv_heads=1, head_dim=64, dtype=torch.float32)
SMALL = Case(
    (-1, 0, 0),
    (90, 20, 70),
    ((1, 2), (1, 70), (2, 9)),
    prefilled=(2,),
    chunk=5,
    num_kv_heads=1,
    group_size=2,
)
WINDOWS = {"none": {}, "window 100": {"window": 100, "soft_cap": 3.0, "has_sinks": True}}
WHOLE, CUT = 0, 1000
"""Multiprocessors: so few that nodes stay whole, so many that they are cut into chunks."""

needs_triton = pytest.mark.usefixtures("quick_interpreter")


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr("treeshare.attention.triton.shape.CHUNK", 64)


@pytest.fixture(autouse=True)
def poisoned_memory():
    """What is allocated and not written holds NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def attend(forest, num_processors=WHOLE):
    return forest.attend(TritonAttention(forest.store.geometry, num_processors=num_processors))


def bits(state, rows=slice(None)):
    return state.out[rows].view(torch.int16 if state.out.itemsize == 2 else torch.int32), state.lse[rows]


def assert_same_bits(a, b):
    for left, right in zip(a, b, strict=True):
        assert torch.equal(left, right)


def slow_but(*kept):
    """Of parameters, those that always run; the others when there is time."""

    def marked(*values):
        return [
            v if v in kept else pytest.param(*v if isinstance(v, tuple) else (v,), marks=pytest.mark.slow)
            for v in values
        ]

    return marked


@needs_triton
@pytest.mark.parametrize("name", ["one sequence", "length 1", "depth 6", "page borders", "mixed step"])
def test_forests(name):
    forest = Forest(replace(FORESTS[name], dtype=torch.bfloat16, num_kv_heads=1))
    assert_within_budget(forest, attend(forest))


@needs_triton
@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize(
    ("head_dim", "dtype"),
    slow_but((16, "bfloat16"), (80, "float16"), (96, "float32"), (128, "bfloat16"), (256, "float32"))(
        *itertools.product((16, 64, 80, 96, 128, 256), DTYPES)
    ),
)
def test_heads(head_dim, dtype):
    """Every width, cut into chunks; unequal rows of a tile, more rows than one tile."""
    case = replace(SMALL, head_dim=head_dim, dtype=DTYPES[dtype])
    forest = Forest(case)
    assert_within_budget(forest, attend(forest, CUT))


@needs_triton
@pytest.mark.parametrize("group_size", slow_but(20)(1, 20))
def test_groups(group_size):
    """One query head, and more of a KV head than a small tile has rows."""
    forest = Forest(replace(SMALL, group_size=group_size, num_kv_heads=2, dtype=torch.float16))
    assert_within_budget(forest, attend(forest))


@needs_triton
@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize(
    ("feature", "dtype"),
    [("window 64", "float32"), ("chunk 5", "float16"), ("all", "bfloat16"), ("wide values", "bfloat16")],
)
def test_features(feature, dtype):
    """Cut into chunks, of which windows leave some out; what no row sees is another's memory."""
    options = {"head_dim": 96} | FEATURES[feature]  # in float32, windows have a tile of their own there
    forest = Forest(replace(SMALL, dtype=DTYPES[dtype], **options))
    forest.give_back_unseen()
    assert_within_budget(forest, attend(forest, CUT))


@needs_triton
@pytest.mark.parametrize("sharing", slow_but("none")("one-level", "none"))
def test_rows_computed_alone(sharing):
    forest = Forest(replace(SMALL, sharing=sharing, dtype=torch.bfloat16))
    assert_within_budget(forest, attend(forest))


@needs_triton
def test_large_scores():
    forest = Forest(replace(SMALL, score_scale=6.0, dtype=torch.bfloat16))
    assert_within_budget(forest, attend(forest))


@needs_triton
@pytest.mark.parametrize("page_size", slow_but(48)(16, 48, 128))
def test_page_sizes(page_size):
    forest = Forest(replace(SMALL, page_size=page_size, dtype=torch.bfloat16))
    assert_within_budget(forest, attend(forest))


@needs_triton
@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("dtype", slow_but(torch.float32)(torch.float32, torch.bfloat16))
@pytest.mark.parametrize("feature", ["none", "window 100"])
def test_cutting_changes_no_bit(dtype, feature):
    """However many programs share a node, its chunks are summed in one order."""
    forest = Forest(replace(SMALL, dtype=dtype, **WINDOWS[feature]))
    num_items = []
    for num_processors in (WHOLE, CUT):
        key = PlanKey.of(forest.layout, 0, forest.case.spec, *forest.query.shape[:2])
        plan = KernelTables.make(forest.layout, key, torch.device("cpu"), num_processors)
        num_items.append((len(plan.shared), len(plan.causal), len(plan.private)))
    assert all(cut > whole for whole, cut in zip(*num_items, strict=True)), "all kinds are cut"
    assert_same_bits(bits(attend(forest, WHOLE)), bits(attend(forest, CUT)))


@needs_triton
@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("dtype", slow_but(torch.bfloat16)(torch.float32, torch.bfloat16))
@pytest.mark.parametrize("feature", slow_but("window 100")("none", "window 100"))
def test_a_row_alone_has_the_same_bits(dtype, feature):
    """Company changes a row's place in its tile, its slots and its neighbours, and no bit of it.

    Nor where the window of a neighbour begins.
    """
    decodes = ((1, 2), *((1, 5),) * 40, (1, 70), (2, 9))
    forest = Forest(replace(SMALL, dtype=dtype, decodes=decodes, **WINDOWS[feature]))
    together = attend(forest)
    rows = forest.layout.decode_rows.tolist()
    for number in (0, 17, 41, 42):
        layout = build_layout(forest.store, [], [forest.rows[number]])
        row = slice(rows[number], rows[number] + 1)
        alone = TritonAttention(forest.store.geometry, num_processors=CUT).attend(
            forest.query[row], forest.key[row], forest.value[row],
            layer=0, layout=layout, spec=forest.case.spec, sinks=forest.sinks,
        )  # fmt: skip
        assert_same_bits(bits(alone), bits(together, row))


@needs_triton
@pytest.mark.parametrize("feature", ["none", "window 100"])
def test_a_plan_with_room_changes_no_bit(feature, monkeypatch):
    """What a CUDA graph reads: tables filled up with work that does nothing, then with the next step's."""
    monkeypatch.setattr("treeshare.attention.triton.arrays.MIN_CAPACITY", 8)
    plans, held = {}, set()
    for decodes in (((1, 2), (2, 9)), ((2, 3), (2, 20))):
        forest = Forest(replace(SMALL, prefilled=(), decodes=decodes, lengths=(90, 5, 7), **WINDOWS[feature]))
        exact = attend(forest)
        backend = TritonAttention(forest.store.geometry, num_processors=WHOLE)
        calls = [(0, forest.case.spec, forest.query.shape[1])]
        (fixed,) = backend.fill_fixed(forest.layout, 8, calls, plans)
        held.add(plans[fixed].memory.data_ptr())
        inputs = (
            torch.cat([x, x.new_ones(8 - len(x), *x.shape[1:])])
            for x in (forest.query, forest.key, forest.value)
        )
        roomy = backend.attend(
            *inputs, layer=0, layout=forest.layout, spec=forest.case.spec, sinks=forest.sinks
        )
        rows = slice(forest.layout.num_rows)
        assert_same_bits(bits(roomy, rows), bits(exact, rows))
        assert torch.all(roomy.lse[forest.layout.num_rows :] == -torch.inf)
        assert len(plans[fixed].private) > len(decodes), "there is room"
    assert len(plans) == len(held) == 1, "both steps have one size and lie in one place"


@needs_triton
def test_layers_of_several_windows_have_plans_of_their_own(monkeypatch):
    """One step for a CUDA graph: each plan lies in its own place, and holds what its layers see."""
    monkeypatch.setattr("treeshare.attention.triton.arrays.MIN_CAPACITY", 8)
    forest = Forest(replace(SMALL, prefilled=(), decodes=((1, 2), (2, 9)), lengths=(90, 5, 7)))
    backend, plans = TritonAttention(forest.store.geometry, num_processors=WHOLE), {}
    specs = [forest.case.spec, replace(forest.case.spec, window=40), replace(forest.case.spec, chunk=64)]
    calls = [(0, spec, forest.query.shape[1]) for spec in (*specs, *specs)]
    fixed = backend.fill_fixed(forest.layout, len(forest.query), calls, plans)
    assert len(fixed) == len({plan.memory.data_ptr() for plan in plans.values()}) == len(specs)
    monkeypatch.setattr(KernelTables, "make", None)  # nothing is planned anew
    for case in (forest.case, replace(forest.case, window=40), replace(forest.case, window_chunk=64)):
        forest.case = case
        assert_within_budget(forest, forest.attend(backend))


@needs_triton
def test_tensors_may_be_views():
    """Queries, keys and values as a model's fused projection leaves them: heads first, or side by side."""
    forest = Forest(replace(SMALL, num_kv_heads=2))
    dense = bits(attend(forest))
    packed = torch.cat([forest.query, forest.key, forest.value], dim=1)
    q, k = forest.query.shape[1], forest.key.shape[1]
    forest.query, forest.key, forest.value = packed[:, :q], packed[:, q : q + k], packed[:, q + k :]
    assert_same_bits(dense, bits(attend(forest)))
    for name in ("query", "key", "value"):
        tensor = getattr(forest, name)
        setattr(forest, name, tensor.transpose(0, 1).contiguous().transpose(0, 1))
    assert_same_bits(dense, bits(attend(forest)))


@needs_triton
def test_bfloat16_is_converted_exactly():
    """The interpreter takes bfloat16 for integers and truncates to it; the kernels do neither."""
    from tests.attention.triton_conversions import round_trip

    special = torch.tensor(
        [0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1e-40, 3.4e38, 1.00390625, 1.01171875]
    )
    values = torch.cat([special, torch.randn(119, generator=torch.Generator().manual_seed(0))])
    rounded, widened = round_trip(values)
    expected = values.bfloat16()
    assert torch.equal(rounded.isnan(), expected.isnan())
    assert torch.equal(rounded.nan_to_num(), expected.nan_to_num())
    assert torch.equal(widened.nan_to_num(), expected.float().nan_to_num())


@needs_triton
def test_a_plan_is_made_once_a_step(monkeypatch):
    forest = Forest(replace(FORESTS["a forest"], num_kv_heads=1))
    backend, made = TritonAttention(forest.store.geometry), []
    make = KernelTables.make
    monkeypatch.setattr(KernelTables, "make", lambda *a, **k: made.append(1) or make(*a, **k))
    first, second = forest.attend(backend), forest.attend(backend)
    assert len(made) == 1
    assert_same_bits(bits(first), bits(second))


@needs_triton
@pytest.mark.parametrize("num_leaves", [2, 24])
def test_launches_do_not_depend_on_the_tree(num_leaves, monkeypatch):
    """One launch per kind of work, however many nodes there are."""
    forest = Forest(
        Case(
            (-1, *(0,) * num_leaves),
            (20, *range(3, 3 + num_leaves)),
            tuple((1 + leaf, leaf) for leaf in range(num_leaves)),
            prefilled=(1,),
            num_kv_heads=1,
        )
    )
    backend, launched = TritonAttention(forest.store.geometry), []

    class Counted:
        def __init__(self, name):
            self.name = name

        def __getitem__(self, grid):
            return lambda *args, **constants: launched.append(self.name)

    names = ["store_tokens", "attend_slices", "attend_slices", "attend_pages", "merge_states"]
    monkeypatch.setattr(backend, "_kernels", SimpleNamespace(**{name: Counted(name) for name in names}))
    forest.attend(backend)
    assert launched == names


def test_what_is_refused(monkeypatch):
    odd = replace(GEOMETRY, dtype=torch.float64)
    with pytest.raises(
        ConfigError, match=r"^backend: got 'triton', expected float16, bfloat16 or float32.*256"
    ):
        make_backend("triton", odd)
    with pytest.raises(
        ConfigError, match=r"^backend: got 'cpu', expected triton on a CUDA device; use auto$"
    ):
        make_backend("cpu", GEOMETRY, device="cuda")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(
        ConfigError, match=r"^backend: got 'triton', expected a CUDA device, not cpu; .*TRITON_INT"
    ):
        make_backend("triton", GEOMETRY)


def test_without_triton_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    message = (
        r"^backend: got 'triton', expected an environment with Triton; "
        + re.escape(how_to_add("triton"))
        + "$"
    )
    with pytest.raises(ConfigError, match=message):
        make_backend("triton", GEOMETRY)


def test_a_store_lies_whole_on_its_device():
    """``meta`` stands for a device that is not the CPU."""
    store = KVStore(GEOMETRY, budget_bytes=1 << 30, page_size=16, max_pages=4, poison=True, device="meta")
    segment = store.segments.new(start=0, num_tokens=70, order=0, parent=None)
    block, pool = segment.block, store.pools[0]
    tensors = [*block.keys_t, *block.values, *pool.keys.values(), *pool.values.values()]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    pages = [store.pools[0].new_page() for _ in range(3)]
    store.pools[0].free(pages[:1])
    store.check_invariants()
