"""Writes Python values as a table of plain nodes, between a program's process and the one that judges it.

Runs inside the sandbox: standard library only, and it imports nothing that a short program has not imported.
``decoder.py`` reads the table.

A *place* is None, a bool, an int, a float or a str; or ``[i]``, which stands for node ``i``. A *node* is a
list that begins with its kind; if it refers to others, its second part is a list of places. Containers are
nodes, so that sharing, cycles and depth survive. Only the contents of builtin types travel, as these types'
own methods give them: what a subclass says of itself does not. The receiving side builds new objects; nothing
in a table can make it run code or import what is not named here.
"""

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import ModuleType
    from typing import Any, TypeAlias

    Value: TypeAlias = Any
    Node: TypeAlias = list[Any]

MAX_INLINE_BITS = 2000
"""Longer integers are written in hexadecimal, which Python does not limit."""

BUILTIN_TYPES = frozenset(
    [
        "bool",
        "bytearray",
        "bytes",
        "complex",
        "dict",
        "float",
        "frozenset",
        "int",
        "list",
        "object",
        "range",
        "set",
        "slice",
        "str",
        "tuple",
        "type",
    ]
)
NUMPY_KINDS = "biufcSUmM"
SYMPY_CONSTANTS = (
    "ComplexInfinity",
    "Exp1",
    "GoldenRatio",
    "ImaginaryUnit",
    "Infinity",
    "NaN",
    "NegativeInfinity",
    "Pi",
    "true",
    "false",
)
SYMPY_OPERATIONS = ("Add", "Mul", "Pow")


class Refused(Exception):  # what a test's verdict calls it
    """A value that cannot travel, or a table that is none; the text is one line."""


class Encoder:
    """Turns values into nodes.

    Args:
        export: Called with a value that is none of the known kinds; returns a node that stands for it.
        known: Objects that the receiver has already, as the first nodes of its table.
    """

    def __init__(self, export: "Callable[[Value], Node]", known: "Iterable[Value]" = ()) -> None:
        self.export = export
        self.objects = list(known)
        self.nodes: list[Node | None] = [None] * len(self.objects)
        self.numbers = {id(value): number for number, value in enumerate(self.objects)}
        self.waiting: list[int] = []

    def place(self, value: "Value") -> "Value":
        """Where ``value`` is to be found in the receiver's table."""
        kind = type(value)
        if value is None or kind is bool or kind is str:
            return value
        if kind is int and value.bit_length() <= MAX_INLINE_BITS:
            return value
        if kind is float and value == value:
            return value
        number = self.numbers.get(id(value))
        if number is None:
            plain = plain_scalar(value, kind)
            if plain is not value:
                return self.place(plain)
            number = self.numbers[id(value)] = len(self.objects)
            self.objects.append(value)
            self.nodes.append(None)
            self.waiting.append(number)
        return [number]

    def finish(self) -> "list[Node | None]":
        """All nodes, once every place has been asked for."""
        while self.waiting:
            number = self.waiting.pop()
            self.nodes[number] = self.node(self.objects[number])
        return self.nodes

    def node(self, value: "Value") -> "Node":
        """The node of a value that is no place."""
        for kind in type(value).__mro__:
            writer = WRITERS.get(kind)
            if writer is not None:
                return writer(self, value)
        for module, write in MODULE_WRITERS:
            if module in sys.modules:
                node = write(self, value, sys.modules[module])
                if node is not None:
                    return node
        return self.export(value)

    def places(self, values: "Iterable[Value]") -> "list[Value]":
        """Several places."""
        return [self.place(value) for value in values]

    def pairs(self, items: "Iterable[Value]") -> "list[Value]":
        """Keys and values in turn."""
        return [self.place(part) for pair in items for part in pair]


def plain_scalar(value: "Value", kind: type) -> "Value":
    """The number or text inside an instance of a subclass; the value itself if it is none."""
    for base in kind.__mro__[1:]:
        if base is str:
            return str.__str__(value)
        if base is int:
            return int.__add__(value, 0)
        if base is float:
            module = sys.modules.get("numpy")
            is_numpy = module is not None and isinstance(value, module.generic)
            return value if is_numpy else float.__float__(value)
    return value


def write_dict(encoder: Encoder, value: "Value") -> "Node":
    """A dict; those of ``collections`` as such."""
    known = sys.modules.get("collections")
    if known is not None:
        if isinstance(value, known.OrderedDict):
            return ["OrderedDict", encoder.pairs(known.OrderedDict.items(value))]
        if isinstance(value, known.defaultdict):
            factory = known.defaultdict.default_factory.__get__(value)
            return ["defaultdict", encoder.pairs(dict.items(value)), encoder.place(factory)]
        if isinstance(value, known.Counter):
            return ["Counter", encoder.pairs(dict.items(value))]
    return ["dict", encoder.pairs(dict.items(value))]


def write_tuple(encoder: Encoder, value: "Value") -> "Node":
    """A tuple; a named one with its names."""
    places = encoder.places(tuple.__iter__(value))
    fields = None if type(value) is tuple else getattr(type(value), "_fields", None)
    if type(fields) is tuple and len(fields) == len(places) and all(type(name) is str for name in fields):
        return ["namedtuple", places, type.__dict__["__name__"].__get__(type(value)), *fields]
    return ["tuple", places]


def write_float(encoder: Encoder, value: "Value") -> "Node":
    """A NaN, which is equal only to itself: it is an object of its own, often ``math.nan``."""
    module = sys.modules.get("numpy")
    if module is not None and isinstance(value, module.generic):
        return ["numpy.generic", value.dtype.str, value.tobytes().decode("latin-1")]
    math = sys.modules.get("math")
    return ["nan", math is not None and value is math.nan]


def write_complex(encoder: Encoder, value: "Value") -> "Node":
    """Its parts, as ``complex`` itself gives them."""
    return ["complex", encoder.places(complex.__dict__[name].__get__(value) for name in ("real", "imag"))]


WRITERS: "dict[type, Callable[[Encoder, Value], Node]]" = {
    int: lambda encoder, value: ["int", hex(value)],
    float: write_float,
    complex: write_complex,
    bytes: lambda encoder, value: ["bytes", bytes.decode(value, "latin-1")],
    bytearray: lambda encoder, value: ["bytearray", bytearray.decode(value, "latin-1")],
    memoryview: lambda encoder, value: ["memoryview", value.tobytes().decode("latin-1")],
    list: lambda encoder, value: ["list", encoder.places(list.__iter__(value))],
    tuple: write_tuple,
    set: lambda encoder, value: ["set", encoder.places(set.__iter__(value))],
    frozenset: lambda encoder, value: ["frozenset", encoder.places(frozenset.__iter__(value))],
    dict: write_dict,
    range: lambda encoder, value: ["range", encoder.places((value.start, value.stop, value.step))],
    slice: lambda encoder, value: ["slice", encoder.places((value.start, value.stop, value.step))],
    type({}.keys()): lambda encoder, value: ["dict_keys", encoder.places(value)],
    type({}.items()): lambda encoder, value: ["dict_items", encoder.pairs(value)],
    type({}.values()): lambda encoder, value: ["dict_values", encoder.places(value)],
    type(type.__dict__): lambda encoder, value: ["mappingproxy", [encoder.place(dict(value))]],
    type(...): lambda encoder, value: ["Ellipsis"],
    type(NotImplemented): lambda encoder, value: ["NotImplemented"],
}
"""How each builtin type is written, as a base of others too: the first base that is one of these counts."""


def write_collections(encoder: Encoder, value: "Value", module: "ModuleType") -> "Node | None":
    """The other containers of ``collections``."""
    if isinstance(value, module.deque):
        return ["deque", encoder.places(module.deque.__iter__(value)), module.deque.maxlen.__get__(value)]
    if type(value) is module.UserList or type(value) is module.UserDict or type(value) is module.UserString:
        return [type(value).__name__, [encoder.place(value.data)]]
    if type(value) is module.ChainMap:
        return ["ChainMap", encoder.places(value.maps)]
    return None


def write_decimal(encoder: Encoder, value: "Value", module: "ModuleType") -> "Node | None":
    """A Decimal, digit by digit."""
    return ["Decimal", module.Decimal.__str__(value)] if isinstance(value, module.Decimal) else None


def write_fraction(encoder: Encoder, value: "Value", module: "ModuleType") -> "Node | None":
    """A Fraction; what a subclass says of itself does not count."""
    if not isinstance(value, module.Fraction):
        return None
    slots = (module.Fraction.__dict__[name] for name in ("_numerator", "_denominator"))
    return ["Fraction", encoder.places(slot.__get__(value) for slot in slots)]


def write_datetime(encoder: Encoder, value: "Value", module: "ModuleType") -> "Node | None":
    """Dates and times without a time zone, and differences of them."""
    kind = type(value)
    if kind is module.timedelta:
        return ["timedelta", value.days, value.seconds, value.microseconds]
    if kind is module.date:
        return ["date", value.year, value.month, value.day]
    if kind not in (module.datetime, module.time) or value.tzinfo is not None:
        return None
    time = [value.hour, value.minute, value.second, value.microsecond]
    return ["time", *time] if kind is module.time else ["datetime", value.year, value.month, value.day, *time]


def write_numpy(encoder: Encoder, value: "Value", module: "ModuleType") -> "Node | None":
    """Arrays and scalars: the type, the shape, and the bytes."""
    if isinstance(value, module.generic) and value.dtype.kind in NUMPY_KINDS:
        return ["numpy.generic", value.dtype.str, value.tobytes().decode("latin-1")]
    if not isinstance(value, module.ndarray):
        return None
    shape = list(value.shape)
    if value.dtype.kind in NUMPY_KINDS:
        return ["numpy.ndarray", value.dtype.str, shape, value.tobytes().decode("latin-1")]
    return (
        ["numpy.objects", shape, encoder.places(value.ravel().tolist())] if value.dtype.kind == "O" else None
    )


def write_sympy(encoder: Encoder, value: "Value", module: "ModuleType") -> "Node | None":
    """Numbers, constants, symbols, and sums, products and powers of them."""
    kind = type(value)
    if not str(getattr(kind, "__module__", "")).startswith("sympy.") or not isinstance(value, module.Basic):
        return None
    if isinstance(value, module.Rational):
        return ["sympy.Rational", encoder.places((int(value.p), int(value.q)))]
    if isinstance(value, module.Float):
        return ["sympy.Float", encoder.places(map(int, value._mpf_)), int(value._prec)]
    for name in SYMPY_CONSTANTS:
        if value is getattr(module.S, name):
            return ["sympy.constant", name]
    if kind is module.Symbol:
        return ["sympy.Symbol", value.name]
    return ["sympy", encoder.places(value.args), kind.__name__] if kind.__name__ in SYMPY_OPERATIONS else None


def write_mpmath(encoder: Encoder, value: "Value", module: "ModuleType") -> "Node | None":
    """Real and complex numbers."""
    if type(value) is module.mpf:
        return ["mpmath.mpf", encoder.places(map(int, value._mpf_))]
    if type(value) is module.mpc:
        return ["mpmath.mpc", encoder.places(int(part) for half in value._mpc_ for part in half)]
    return None


MODULE_WRITERS = (
    ("collections", write_collections),
    ("fractions", write_fraction),
    ("decimal", write_decimal),
    ("datetime", write_datetime),
    ("numpy", write_numpy),
    ("sympy", write_sympy),
    ("mpmath", write_mpmath),
)
"""A value can only be of such a type if its module was imported."""


def quoted(text: str) -> str:
    """A text as JSON."""
    if text.isascii() and text.isprintable() and '"' not in text and "\\" not in text:
        return f'"{text}"'
    from _json import encode_basestring_ascii  # a millisecond

    return encode_basestring_ascii(text)


def as_json(structure: "Value") -> bytes:
    """Nested lists of places as JSON text; to import the module json takes longer than most programs do."""

    def write(part: "Value") -> str:
        kind = type(part)
        if kind is list:
            return "[" + ",".join(map(write, part)) + "]"
        if kind is int:
            return int.__repr__(part)
        if kind is str:
            return quoted(part)
        if kind is float:
            return float.__repr__(part).replace("inf", "Infinity")
        return "null" if part is None else "true" if part else "false"

    return write(structure).encode("ascii")
