"""The conversation of a test with the program that it tests, in another process.

Runs inside the sandbox, on both sides. Values travel as tables of nodes; what is no plain value stays where
it is, and the other side gets a ``Remote`` for it, which passes on calls, attributes, items and iteration.
Comparing, hashing and calculating are not passed on: an object must not learn what it is compared with, nor
say itself that it is right.
"""

import _operator as operator
import builtins

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, TypeAlias

    Value: TypeAlias = Any
    Node: TypeAlias = list[Any]

if "Decoder" not in globals():  # in the sandbox, all files of a role are one namespace
    from treeshare.evals.sandbox.decoder import CLEARABLE, Decoder
    from treeshare.evals.sandbox.encoder import BUILTIN_TYPES, Encoder, Refused
    from treeshare.evals.sandbox.harness import judge


def take(iterator: "Iterator[Value]", count: int, failures: "dict[int, BaseException]") -> "list[Value]":
    """Up to ``count`` next items, and whether there are no more; an error comes in its turn."""
    if id(iterator) in failures:
        raise failures.pop(id(iterator))
    items: list[Value] = []
    try:
        for _ in range(count):
            items.append(next(iterator))
    except StopIteration:
        return [items, True]
    except BaseException as error:
        if not items:
            raise
        failures[id(iterator)] = error
    return [items, False]


OPERATIONS: "dict[str, Callable[..., Value]]" = {
    "get": getattr,
    "set": setattr,
    "delete": delattr,
    "item": operator.getitem,
    "set item": operator.setitem,
    "delete item": operator.delitem,
    "iter": iter,
    "length": len,
    "truth": bool,
    "text": str,
    "repr": repr,
    "int": int,
    "float": float,
    "instance": lambda kind, value: isinstance(value, kind),
}
"""What a ``Remote`` passes on, besides calls and the next items."""


READABLE = ("__annotations__", "__dict__", "__module__", "__name__", "__qualname__")
"""Special attributes that are passed on. By others an object would tell libraries how to treat it: numpy
takes a memory address from one."""


class Remote:
    """Stands for an object of the other process."""

    __slots__ = ("_treeshare_items", "_treeshare_number", "_treeshare_peer")
    __doc__ = None

    def __init__(self, peer: "Peer", number: int) -> None:
        object.__setattr__(self, "_treeshare_peer", peer)
        object.__setattr__(self, "_treeshare_number", number)
        object.__setattr__(self, "_treeshare_items", [[], False, 1])

    def __call__(self, *args: "Value", **named: "Value") -> "Value":
        """Have it called where it is."""
        return self._treeshare_peer.ask("call", [self, *args], named)

    def __getattr__(self, name: str) -> "Value":
        if name.startswith("__") and name not in READABLE:
            raise AttributeError(name)
        return self._treeshare_peer.ask("get", [self, name])

    def __setattr__(self, name: str, value: "Value") -> None:
        self._treeshare_peer.ask("set", [self, name, value])

    def __delattr__(self, name: str) -> None:
        self._treeshare_peer.ask("delete", [self, name])

    def __getitem__(self, key: "Value") -> "Value":
        return self._treeshare_peer.ask("item", [self, key])

    def __setitem__(self, key: "Value", value: "Value") -> None:
        self._treeshare_peer.ask("set item", [self, key, value])

    def __delitem__(self, key: "Value") -> None:
        self._treeshare_peer.ask("delete item", [self, key])

    def __iter__(self) -> "Value":
        return self._treeshare_peer.ask("iter", [self])

    def __next__(self) -> "Value":
        state = self._treeshare_items
        while not state[0]:
            if state[1]:
                raise StopIteration
            items, state[1] = self._treeshare_peer.ask("next", [self, state[2]])
            state[0] = list(items)[::-1]
            state[2] = min(2 * state[2], self._treeshare_peer.max_at_once)
        return state[0].pop()

    def __len__(self) -> int:
        return int(self._treeshare_peer.ask("length", [self]))

    def __bool__(self) -> bool:
        return bool(self._treeshare_peer.ask("truth", [self]))

    def __str__(self) -> str:
        return str(self._treeshare_peer.ask("text", [self]))

    def __repr__(self) -> str:
        return str(self._treeshare_peer.ask("repr", [self]))

    def __int__(self) -> int:
        return int(self._treeshare_peer.ask("int", [self]))

    def __float__(self) -> float:
        return float(self._treeshare_peer.ask("float", [self]))

    def __instancecheck__(self, value: "Value") -> bool:
        if not isinstance(value, Remote):
            return False
        return bool(self._treeshare_peer.ask("instance", [self, value]))


class Peer:
    """One end of a conversation in which exactly one side is at work at a time.

    Args:
        receive: Waits for the other side's next message.
        send: Sends one.
        may: Asked before an operation of the other side on an object of this one; raises to refuse it.
        may_lend: Asked before an object is lent; raises to refuse it.
        max_at_once: Maximum number of items of the other side's iterators that are fetched in advance.
    """

    def __init__(
        self,
        receive: "Callable[[], list[Value]]",
        send: "Callable[[list[Value]], None]",
        may: "Callable[[str, list[Value]], None] | None" = None,
        may_lend: "Callable[[Value], None] | None" = None,
        max_at_once: int = 1,
    ) -> None:
        self.receive, self.send, self.may, self.may_lend = receive, send, may, may_lend
        self.max_at_once = max_at_once
        self.lent: list[Value] = []
        self.lent_numbers: dict[int, int] = {}
        self.borrowed: dict[int, Value] = {}
        self.borrowed_classes: dict[type, int] = {}
        self.kinds: dict[str, type] = {}
        self.failures: dict[int, BaseException] = {}

    def lend(self, value: "Value") -> "Node":
        """The node of an object that stays here."""
        if isinstance(value, type):
            if is_builtin(value) and value.__name__ in BUILTIN_TYPES:
                return ["type", value.__name__]
            if value in self.borrowed_classes:
                return ["yours", self.borrowed_classes[value]]
        if isinstance(value, Remote):
            return ["yours", value._treeshare_number]
        if self.may_lend is not None:
            self.may_lend(value)
        number = self.lent_numbers.get(id(value))
        if number is None:
            number = self.lent_numbers[id(value)] = len(self.lent)
            self.lent.append(value)
        if isinstance(value, type) and issubclass(value, BaseException):
            return ["exception", number, value.__name__, base_name(value)]
        return ["mine", number, type.__dict__["__name__"].__get__(type(value))[:80]]

    def borrow(self, node: "Node") -> "Value":
        """The object that a node of the other side's ``lend`` stands for."""
        number = node[1]
        if type(number) is not int or number < 0:
            raise Refused("a reference to no object")
        if node[0] == "yours":
            if number >= len(self.lent):
                raise Refused("a reference to an object that was never lent")
            return self.lent[number]
        if number not in self.borrowed:
            if node[0] == "exception":
                self.borrowed[number] = type(str(node[2])[:80], (builtin_error(node[3]),), {})
                self.borrowed_classes[self.borrowed[number]] = number
            elif node[0] == "mine":
                name = str(node[2])
                kind = self.kinds.setdefault(name, type(name, (Remote,), {"__slots__": (), "__doc__": None}))
                self.borrowed[number] = kind(self, number)
            else:
                raise Refused("a value of a kind that is not known")
        return self.borrowed[number]

    def ask(self, operation: str, values: "list[Value]", named: "dict[str, Value] | None" = None) -> "Value":
        """Have the other side do something; serve what it asks for meanwhile."""
        named = named or {}
        encoder = Encoder(self.lend)
        places = encoder.places([*values, *named.values()])
        self.send(["?", operation, places, list(named), encoder.finish()])
        while True:
            message = self.receive()
            if message and message[0] == "?":
                self.answer(message)
                continue
            return self.result(message, encoder.objects)

    def result(self, message: "list[Value]", known: "list[Value]") -> "Value":
        """What an answer says, or its exception."""
        try:
            if message[0] == "=":
                return Decoder(message[2], known, self.borrow).at(message[1])
            base, place, arguments, text, verdict, detail, nodes = message[1:]
            decoder = Decoder(nodes, known, self.borrow)
            kind = builtin_error(base) if place is None else decoder.at(place)
            if not (isinstance(kind, type) and issubclass(kind, BaseException)):
                raise Refused("an exception of no kind")
            error = make_error(kind, decoder.all(arguments), str(text))
        except (MemoryError, Refused):
            raise
        except Exception as broken:
            raise Refused(f"a message that cannot be read: {type(broken).__name__}") from broken
        error.__dict__["_treeshare_origin"] = (verdict, detail)
        raise error

    def opened(self, message: "list[Value]") -> "tuple[str, list[Value], dict[str, Value], list[Value]]":
        """What is asked, of which objects, with which named arguments; and all objects of the message."""
        _, operation, places, names, nodes = message
        decoder = Decoder(nodes, [], self.borrow)
        values = decoder.all(places)
        count = len(values) - len(names)
        return operation, values[:count], dict(zip(names, values[count:], strict=True)), decoder.objects

    def answer(self, message: "list[Value]") -> None:
        """Do what the other side asks for, and say what came of it."""
        known: list[Value] = []
        try:
            operation, values, named, known = self.opened(message)
            if self.may is not None:
                if not values or id(values[0]) not in self.lent_numbers:
                    raise Refused("an operation on nothing that was lent")
                self.may(operation, values)
            self.send(self.returned(self.do(operation, values, named), known, message[4]))
        except BaseException as error:
            self.send(self.raised(error, known, message[4]))

    def do(self, operation: str, values: "list[Value]", named: "dict[str, Value]") -> "Value":
        """Do it."""
        if operation == "call":
            return values[0](*values[1:], **named)
        if operation == "next":
            return take(values[0], values[1], self.failures)
        return OPERATIONS[operation](*values)

    def returned(self, value: "Value", known: "list[Value]", nodes: "list[Node]") -> "list[Value]":
        """The answer with a value, and with the new content of arguments that have changed."""
        encoder = Encoder(self.lend, known)
        place = encoder.place(value)
        add_changes(encoder, nodes)
        return ["=", place, encoder.finish()]

    def raised(self, error: BaseException, known: "list[Value]", nodes: "list[Node]") -> "list[Value]":
        """The answer with an exception, and with the new content of arguments that have changed."""
        verdict, detail = judge(error)
        encoder = Encoder(self.lend, known)
        if known:
            add_changes(encoder, nodes)
        is_plain = is_builtin(kind := type(error)) or issubclass(kind, Refused)
        place = None if is_plain else encoder.place(kind)
        try:
            arguments = encoder.places(tuple(error.args))
            table = encoder.finish()
        except BaseException:
            encoder = Encoder(self.lend, known)
            place, arguments = None if is_plain else encoder.place(kind), []
            table = encoder.finish()
        text = detail.partition(": ")[2]
        return ["!", base_name(kind), place, arguments, text, verdict, detail, table]


def add_changes(encoder: "Encoder", nodes: "list[Node]") -> None:
    """The nodes of known objects that have changed since ``nodes`` were read."""
    for number, node in enumerate(nodes):
        if node[0] in CLEARABLE or node[0] == "numpy.ndarray":
            now = encoder.node(encoder.objects[number])
            if not same(now, node):
                encoder.nodes[number] = now


def same(node: "Node", other: "Node") -> bool:
    """Whether two nodes say the same, to the type and the bit: ``1`` is not ``True``."""
    import marshal

    return marshal.dumps(node, 2) == marshal.dumps(other, 2)


def base_name(kind: type) -> str:
    """The builtin exception that a class of exceptions is one of."""
    return next(base.__name__ for base in kind.__mro__ if is_builtin(base))


def is_builtin(kind: type) -> bool:
    """Whether a class is one of Python's own."""
    return getattr(builtins, kind.__name__, None) is kind


def builtin_error(name: str) -> "type[BaseException]":
    """A builtin exception by its name."""
    kind = getattr(builtins, name, None) if type(name) is str else None
    if not (isinstance(kind, type) and issubclass(kind, BaseException)):
        raise Refused("an exception that is not known")
    return kind


def make_error(kind: "type[BaseException]", arguments: "list[Value]", text: str) -> BaseException:
    """An exception with its arguments, or at least with its text."""
    try:
        return kind(*arguments)
    except Exception:
        error = kind.__new__(kind)
        error.args = (text,)
        return error
