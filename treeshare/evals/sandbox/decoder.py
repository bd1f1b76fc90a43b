"""Builds the values that a table of nodes describes; ``encoder.py`` writes such tables.

Runs inside the sandbox. What it reads may be written by a hostile program: every node is checked, and only
the types that are named here are made.
"""

import math

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, TypeAlias

    Value: TypeAlias = Any
    Node: TypeAlias = list[Any]

if "Refused" not in globals():  # in the sandbox, all files of a role are one namespace
    from treeshare.evals.sandbox.encoder import (
        BUILTIN_TYPES,
        NUMPY_KINDS,
        SYMPY_CONSTANTS,
        SYMPY_OPERATIONS,
        Refused,
    )

SCALARS = (int, float, str, bool, type(None))


class Decoder:
    """Turns a table into objects.

    Args:
        nodes: The table. Where an object is known, None or its new content.
        known: The objects of the first nodes; changed in place where there is new content.
        imported: Called with a node that stands for something on the sender's side, or sent from here.

    Raises:
        Refused: If the table is none.
    """

    def __init__(
        self, nodes: "list[Node | None]", known: "list[Value]", imported: "Callable[[Node], Value]"
    ) -> None:
        if type(nodes) is not list or len(nodes) < len(known):
            raise Refused("a message without a table of values")
        self.nodes, self.imported = nodes, imported
        self.objects: list[Value] = [*known, *[None] * (len(nodes) - len(known))]
        self.is_made = [False] * len(nodes)
        for number, node in enumerate(nodes):
            self.begin(number, node, number < len(known))
        for number in range(len(nodes)):
            self.make(number)
        for number, node in enumerate(nodes):
            if node is not None and node[0] in FILLERS:
                FILLERS[node[0]](self.objects[number], self, node)

    def begin(self, number: int, node: "Node | None", is_known: bool) -> None:
        """Make what needs no other node, and empty containers."""
        if node is None and is_known:
            self.is_made[number] = True
            return
        if type(node) is not list or not node or type(node[0]) is not str:
            raise Refused("a message with a broken table of values")
        kind = node[0]
        if is_known:
            self.renew(self.objects[number], node)
        elif kind in FILLERS:
            self.objects[number] = EMPTY[kind](self, node)
        elif kind not in MAKERS:
            self.objects[number] = self.imported(node)
        self.is_made[number] = is_known or kind not in MAKERS

    def renew(self, content: "Value", node: "Node") -> None:
        """Empty a known object, to be filled again: what a program may do to an argument."""
        kind = node[0]
        if kind == "numpy.ndarray" and kind == f"numpy.{type(content).__name__}":
            content[...] = MAKERS[kind](self, node)
        elif kind in CLEARABLE and any(base.__name__ == kind for base in type(content).__mro__):
            content.clear()
        else:
            raise Refused("a change of an argument that cannot be changed")

    def make(self, number: int) -> None:
        """Make a value that cannot change, after those that it is made of."""
        if self.is_made[number]:
            return
        waiting = [(number, self.parts(number))]
        while waiting:
            number, parts = waiting[-1]
            missing = next((part for part in parts if not self.is_made[part]), None)
            if missing is not None:
                if len(waiting) > len(self.nodes):
                    raise Refused("a value that is part of itself")
                waiting.append((missing, self.parts(missing)))
                continue
            node = self.nodes[number]
            assert node is not None
            self.objects[number] = MAKERS[node[0]](self, node)
            self.is_made[number] = True
            waiting.pop()

    def parts(self, number: int) -> "Iterator[int]":
        """The nodes that a node refers to."""
        node = self.nodes[number]
        assert node is not None
        places = node[1] if len(node) > 1 and type(node[1]) is list else []
        for place in places:
            if type(place) is list and len(place) == 1:
                part = place[0]
                if type(part) is int and 0 <= part < len(self.nodes):
                    yield part

    def at(self, place: "Value") -> "Value":
        """The value in a place."""
        if type(place) in SCALARS:
            return place
        if type(place) is list and len(place) == 1 and type(place[0]) is int:
            number = place[0]
            if 0 <= number < len(self.objects):
                return self.objects[number]
        raise Refused("a message with a broken place of a value")

    def all(self, places: "Value") -> "list[Value]":
        """The values in several places."""
        if type(places) is not list:
            raise Refused("a message with broken places of values")
        return [self.at(place) for place in places]

    def pairs(self, places: "Value") -> "list[tuple[Value, Value]]":
        """Keys with their values."""
        parts = self.all(places)
        return list(zip(parts[::2], parts[1::2], strict=True))


def fill_dict(target: "Value", decoder: Decoder, node: "Node") -> None:
    """Fill any kind of dict."""
    for key, value in decoder.pairs(node[1]):
        target[key] = value


def fill_objects(target: "Value", decoder: Decoder, node: "Node") -> None:
    """Fill an array of objects."""
    for place, value in zip(range(target.size), decoder.all(node[2]), strict=True):
        target.flat[place] = value


FILLERS: "dict[str, Callable[[Value, Decoder, Node], object]]" = {
    "list": lambda target, decoder, node: target.extend(decoder.all(node[1])),
    "deque": lambda target, decoder, node: target.extend(decoder.all(node[1])),
    "set": lambda target, decoder, node: target.update(decoder.all(node[1])),
    "dict": fill_dict,
    "Counter": fill_dict,
    "OrderedDict": fill_dict,
    "defaultdict": fill_dict,
    "bytearray": lambda target, decoder, node: target.extend(node[1].encode("latin-1")),
    "numpy.objects": fill_objects,
}


def an_empty(name: str) -> "Callable[[Decoder, Node], Value]":
    """Makes an empty container of ``collections``."""

    def make(decoder: Decoder, node: "Node") -> "Value":
        import collections

        return getattr(collections, name)()

    return make


def empty_deque(decoder: Decoder, node: "Node") -> "Value":
    """An empty deque of the right length."""
    import collections

    return collections.deque(maxlen=node[2])


def empty_defaultdict(decoder: Decoder, node: "Node") -> "Value":
    """A defaultdict whose factory is asked for when it is needed: its node may come later."""
    import collections

    if node[2] is None:
        return collections.defaultdict()
    factory = decoder.nodes[node[2][0]]
    if factory is not None and factory[0] == "type":
        return collections.defaultdict(make_type(decoder, factory))
    return collections.defaultdict(lambda: decoder.at(node[2])())


def empty_objects(decoder: Decoder, node: "Node") -> "Value":
    """An array of objects."""
    import numpy

    return numpy.empty(tuple(map(int, node[1])), dtype=object)


EMPTY: "dict[str, Callable[[Decoder, Node], Value]]" = {
    "list": lambda decoder, node: [],
    "deque": empty_deque,
    "set": lambda decoder, node: set(),
    "dict": lambda decoder, node: {},
    "Counter": an_empty("Counter"),
    "OrderedDict": an_empty("OrderedDict"),
    "defaultdict": empty_defaultdict,
    "bytearray": lambda decoder, node: bytearray(),
    "numpy.objects": empty_objects,
}

CLEARABLE = ("list", "set", "dict", "Counter", "OrderedDict", "defaultdict", "deque", "bytearray")


def make_namedtuple(decoder: Decoder, node: "Node") -> "Value":
    """A named tuple, of a class with these names."""
    import collections

    return collections.namedtuple(node[2], node[3:])(*decoder.all(node[1]))


def integers(decoder: Decoder, node: "Node") -> "list[int]":
    """A node's parts, which must be integers: a text would be parsed, at any cost."""
    parts = decoder.all(node[1])
    if not all(type(part) is int for part in parts):
        raise Refused("a number whose parts are no integers")
    return parts


def make_decimal(decoder: Decoder, node: "Node") -> "Value":
    """A Decimal."""
    import decimal

    return decimal.Decimal(node[1])


def make_fraction(decoder: Decoder, node: "Node") -> "Value":
    """A Fraction."""
    import fractions

    return fractions.Fraction(*integers(decoder, node))


def make_time(decoder: Decoder, node: "Node") -> "Value":
    """A date, a time, or a difference."""
    import datetime

    kind = getattr(datetime, node[0])
    return kind(*map(int, node[1:]))


def make_user_container(decoder: Decoder, node: "Node") -> "Value":
    """A wrapper of ``collections``, around the very object that it was around."""
    import collections

    wrapper = collections.UserString("") if node[0] == "UserString" else getattr(collections, node[0])()
    wrapper.data = decoder.at(node[1][0])
    return wrapper


def make_chain_map(decoder: Decoder, node: "Node") -> "Value":
    """A ChainMap."""
    import collections

    return collections.ChainMap(*decoder.all(node[1]))


def make_proxy(decoder: Decoder, node: "Node") -> "Value":
    """A read-only dict."""
    import types

    return types.MappingProxyType(decoder.at(node[1][0]))


def make_type(decoder: Decoder, node: "Node") -> "Value":
    """A builtin type, by its name."""
    import builtins

    if node[1] not in BUILTIN_TYPES:
        raise Refused("a type that is not known")
    return getattr(builtins, node[1])


def make_array(decoder: Decoder, node: "Node") -> "Value":
    """A numpy array, or a scalar; its bytes must be as many as its shape says."""
    import numpy

    kind = numpy.dtype(node[1])
    if kind.kind not in NUMPY_KINDS:
        raise Refused("an array of a type that is not known")
    content = numpy.frombuffer(node[-1].encode("latin-1"), dtype=kind).copy()
    return content[0] if node[0] == "numpy.generic" else content.reshape(tuple(map(int, node[2])))


def make_sympy(decoder: Decoder, node: "Node") -> "Value":
    """A number, constant, symbol or sum of sympy."""
    if (node[0] == "sympy" and node[2] not in SYMPY_OPERATIONS) or (
        node[0] == "sympy.constant" and node[1] not in SYMPY_CONSTANTS
    ):
        raise Refused("an expression that is not known")
    import sympy

    if node[0] == "sympy.Rational":
        return sympy.Rational(*integers(decoder, node))
    if node[0] == "sympy.Float":
        return sympy.Float(tuple(integers(decoder, node)), precision=int(node[2]))
    if node[0] == "sympy.Symbol":
        return sympy.Symbol(str(node[1]))
    if node[0] == "sympy.constant":
        return getattr(sympy.S, node[1])
    parts = decoder.all(node[1])
    if not all(isinstance(part, sympy.Basic) for part in parts):  # others would be asked what they are
        raise Refused("an expression of what is none")
    return getattr(sympy, node[2])(*parts)


def make_mpmath(decoder: Decoder, node: "Node") -> "Value":
    """A number of mpmath."""
    import mpmath  # type: ignore[import-untyped]

    parts = integers(decoder, node)
    if node[0] == "mpmath.mpf":
        return mpmath.mp.make_mpf(tuple(parts))
    return mpmath.mp.make_mpc((tuple(parts[:4]), tuple(parts[4:])))


MAKERS: "dict[str, Callable[[Decoder, Node], Value]]" = {
    "int": lambda decoder, node: int(node[1], 16),
    "nan": lambda decoder, node: math.nan if node[1] else float("nan"),
    "complex": lambda decoder, node: complex(*decoder.all(node[1])),
    "bytes": lambda decoder, node: node[1].encode("latin-1"),
    "memoryview": lambda decoder, node: memoryview(node[1].encode("latin-1")),
    "tuple": lambda decoder, node: tuple(decoder.all(node[1])),
    "frozenset": lambda decoder, node: frozenset(decoder.all(node[1])),
    "range": lambda decoder, node: range(*decoder.all(node[1])),
    "slice": lambda decoder, node: slice(*decoder.all(node[1])),
    "dict_keys": lambda decoder, node: dict.fromkeys(decoder.all(node[1])).keys(),
    "dict_items": lambda decoder, node: dict(decoder.pairs(node[1])).items(),
    "dict_values": lambda decoder, node: dict(enumerate(decoder.all(node[1]))).values(),
    "mappingproxy": make_proxy,
    "Ellipsis": lambda decoder, node: ...,
    "NotImplemented": lambda decoder, node: NotImplemented,
    "namedtuple": make_namedtuple,
    "UserList": make_user_container,
    "UserDict": make_user_container,
    "UserString": make_user_container,
    "ChainMap": make_chain_map,
    "Decimal": make_decimal,
    "Fraction": make_fraction,
    "date": make_time,
    "time": make_time,
    "datetime": make_time,
    "timedelta": make_time,
    "type": make_type,
    "numpy.ndarray": make_array,
    "numpy.generic": make_array,
    "sympy": make_sympy,
    "sympy.Rational": make_sympy,
    "sympy.Float": make_sympy,
    "sympy.Symbol": make_sympy,
    "sympy.constant": make_sympy,
    "mpmath.mpf": make_mpmath,
    "mpmath.mpc": make_mpmath,
}
