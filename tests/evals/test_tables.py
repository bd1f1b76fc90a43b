"""Values as tables of nodes: there and back, and tables that a hostile program has made."""

from __future__ import annotations

import json
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.evals.cheats import BROKEN_MESSAGES
from tests.examples import examples
from treeshare.evals.sandbox.decoder import Decoder
from treeshare.evals.sandbox.encoder import Encoder, Refused, as_json
from treeshare.evals.sandbox.proxies import Peer

SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=5)
)
SCALARS |= st.complex_numbers() | st.fractions() | st.decimals() | st.integers(1 << 2000, 1 << 2100)
KEYS = st.text(max_size=3) | st.integers() | st.tuples(st.booleans(), st.integers())
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(KEYS, inner, max_size=2)
        | st.dictionaries(KEYS, inner, max_size=2).map(OrderedDict)
        | st.dictionaries(KEYS, inner, max_size=2).map(lambda found: defaultdict(list, found))
        | st.lists(inner, max_size=2).map(deque)
        | st.binary(max_size=3).map(bytearray)
    ),
    max_leaves=8,
)


def refuse(value):
    raise Refused(type(value).__name__)


def there_and_back(value):
    peer = Peer(refuse, refuse, may_lend=refuse)
    encoder = Encoder(peer.lend)
    place = encoder.place(value)
    place, nodes = json.loads(as_json([place, encoder.finish()]))
    return Decoder(nodes, [], peer.borrow).at(place)


@examples(60)
@given(VALUES)
def test_there_and_back(value):
    """The text says more than ``==``: types, order, the sign of zero, NaN."""
    assert repr(there_and_back(value)) == repr(value)


class Liar:
    """What every one of these says of itself is a lie."""

    def __bool__(self):
        return True

    def __float__(self):
        return 1.0

    __eq__ = __contains__ = __instancecheck__ = lambda self, other: True
    __hash__ = __len__ = __int__ = __index__ = lambda self: 1
    __iter__ = keys = values = items = lambda self: iter(())
    __str__ = __repr__ = decode = lambda self, *args: "lie"
    __reduce_ex__ = __reduce__ = lambda self, *args: (str, ())
    __class__ = property(lambda self: str)
    numerator = denominator = real = imag = property(lambda self: 1)


@pytest.mark.parametrize(
    "value",
    [
        *(7, 1 << 3000, 2.5, "text", b"ab", bytearray(b"ab"), 1 + 2j),
        *([1, 2], (1, 2), {1: 2}, {1, 2}, frozenset({1})),
        *(OrderedDict(a=1), Counter("ab"), deque([1]), Fraction(2, 3), Decimal("1.5")),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_subclass_is_what_its_base_holds(value):
    kind = type(value)
    lie = type("Lie", (Liar, kind), {"__init__": kind.__init__, "__new__": kind.__new__})(value)
    assert lie == 999  # the lie works
    back = there_and_back(lie)
    assert type(back) is kind
    assert back == value
    assert back != 999


def test_sharing_cycles_and_depth_stay():
    shared: list = [1]
    value = {"a": shared, "b": (shared, [shared])}
    back = there_and_back(value)
    assert back["a"] is back["b"][0] is back["b"][1][0]
    loop: list = []
    loop.append((loop, {"x": loop}))
    back = there_and_back(loop)
    assert back[0][0] is back
    assert back[0][1]["x"] is back
    deep: object = None
    for _ in range(2 * sys.getrecursionlimit()):
        deep = (deep,) if deep is None else [deep]
    back, depth = there_and_back(deep), 0
    while back is not None:
        back, depth = back[0], depth + 1
    assert depth == 2 * sys.getrecursionlimit()


@pytest.mark.parametrize("message", BROKEN_MESSAGES, ids=lambda message: message[:40].decode("latin-1"))
def test_what_a_hostile_program_sends_is_refused(message):
    """Or it is an exception of a builtin kind, which never says that the test has passed."""
    peer = Peer(lambda: None, lambda message: None)
    try:
        answer = json.loads(message)
    except (ValueError, RecursionError):
        return
    with pytest.raises((Refused, SystemExit)) as caught:
        peer.result(answer, [])
    assert caught.type.__name__ in ("Refused", "SystemExit")


def test_special_attributes_are_not_passed_on():
    """numpy would believe an address, copy a method, sympy a conversion."""
    asked: list = []
    remote = Peer(refuse, refuse).borrow(["mine", 0, "E"])
    remote._treeshare_peer.ask = lambda *values: asked.append(values)
    for name in (
        "__array_interface__",
        "__array_struct__",
        "__array__",
        "__deepcopy__",
        "__index__",
        "__fspath__",
    ):
        assert not hasattr(remote, name)
    assert asked == []
    assert remote.__name__ is None  # what an answer of nothing is
    assert len(asked) == 1


def test_known_objects_change_in_place_and_only_in_kind():
    known = [[1], {"a": 1}, (1,)]
    decoder = Decoder([["list", [2, [1]]], None, None, ["list", []]], known, refuse)
    assert known[0] == [2, {"a": 1}]
    assert known[0][1] is known[1]
    assert decoder.at([3]) == []
    for nodes in ([["dict", []], None, None], [None, None, ["tuple", [2]]], [None, ["list", []], None]):
        with pytest.raises(Refused, match="cannot be changed"):
            Decoder(nodes, known, refuse)
