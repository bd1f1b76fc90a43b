"""Reads an answer's text: what cannot be read is said to be ``Unread``, never an error."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from treeshare.evals.math_judge.answers import Answer, Items, Matrix, Quantity, Relation, Unread, Value, Words
from treeshare.evals.math_judge.arithmetic import NoValueError, TooLargeError, add, negative
from treeshare.evals.math_judge.brackets import (
    closing_place,
    parts_at,
    places_outside,
    step_of,
    trimmed,
    words_of,
)
from treeshare.evals.math_judge.cursor import NoExpressionError
from treeshare.evals.math_judge.quantities import based, quantity
from treeshare.evals.math_judge.syntax import expression
from treeshare.evals.math_judge.tokens import MAX_CHARS, Token, tokens_of
from treeshare.evals.math_judge.units import is_unit

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MAX_ITEMS = 100
"""Of a list, a set or a matrix."""

_RELATIONS = ("=", "<", ">", "le", "ge", "ne", "in")
_TURNED = {"<": ">", ">": "<", "le": "ge", "ge": "le"}
_MATRICES = ("matrix", "pmatrix", "bmatrix", "Bmatrix", "smallmatrix", "array", "vmatrix", "Vmatrix")
_MAX_DEPTH = 8
_MAX_CALCULUS = 100
"""Tokens."""


def read_answer(text: str) -> Answer:
    """Read an answer; what cannot be read is ``Unread``, never an error."""
    if len(text) > MAX_CHARS:
        reason = f"longer than {MAX_CHARS} characters"
        return Answer(text=text, normal=" ".join(text.split()), words="", value=Unread(reason))
    tokens = trimmed(tokens_of(text))
    if _is_calculus(tokens):
        value: Value = Quantity(node=("latex", text.strip().strip("$.")))
        return Answer(text=text, normal=" ".join(token.text for token in tokens), words="", value=value)
    return Answer(
        text=text,
        normal=" ".join(token.text for token in tokens),
        words=words_of(tokens),
        value=_value(tokens),
        other=_other_reading(text, tokens),
    )


def _other_reading(text: str, tokens: tuple[Token, ...]) -> Value | None:
    listed = trimmed(tokens_of(text, commas_group=False)) if "," in text else tokens
    if listed != tokens:
        return _value(listed)
    last = tokens[-1] if len(tokens) > 1 else None
    if last is not None and last.kind == "letter" and last.spaced and is_unit(last.text):
        return _value((*tokens[:-1], Token("word", last.text, True)))
    return None


def _value(tokens: tuple[Token, ...]) -> Value:
    try:
        return _Reader().value(tokens)
    except (NoExpressionError, NoValueError, TooLargeError) as error:
        return Unread(str(error))
    except RecursionError:
        return Unread("nested too deep")


def _is_calculus(tokens: Sequence[Token]) -> bool:
    """Whether this is what only math-verify's parser reads; it passes over what it does not know."""
    names = {token.text for token in tokens if token.kind == "command"}
    known = all(token.kind in ("number", "letter", "command", "mark", "word") for token in tokens)
    return bool(names & {"sum", "prod", "int", "lim"}) and known and len(tokens) <= _MAX_CALCULUS


class _Reader:
    def __init__(self) -> None:
        self._depth = 0
        self._num_items = 0

    def value(self, tokens: tuple[Token, ...]) -> Value:
        """What tokens are.

        Raises:
            NoExpressionError: If nothing can be made of them.
        """
        tokens = trimmed(tokens)
        if not tokens:
            raise NoExpressionError("nothing is there")
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise NoExpressionError("lists nested too deep")
        found = self._words(tokens) or self._several(tokens) or self._related(tokens) or self._single(tokens)
        self._depth -= 1
        return found

    def _words(self, tokens: tuple[Token, ...]) -> Value | None:
        """Words, if no part is arithmetic."""
        if not any(
            token.kind == "word" and (len(token.text) > 2 or not token.text.isalpha()) for token in tokens
        ):
            return None
        is_text = all(
            token.kind in ("word", "letter")
            or token.text in ("(", ")", ".", "'", "and", "or", "in", "-", '"')
            for token in tokens
        )
        begins = tokens[0].kind == "word" and len(tokens[0].text) > 2 and not is_unit(tokens[0].text)
        has_relation = any(token.text in _RELATIONS for token in tokens)
        return Words(words_of(tokens)) if is_text or (begins and not has_relation) else None

    def _several(self, tokens: tuple[Token, ...]) -> Value | None:
        """A list, or a union of intervals."""
        parts = [part for part in parts_at(tokens, ",", ";", "and", "or") if part]
        if len(parts) > 1:
            self._count(parts)
            if any(token.text == "or" for token in tokens):
                values = [self.value(part) for part in parts]
                if all(_is_interval(value) for value in values):
                    return Items(kind="union", items=tuple(values))
                return _listed(values)
            return _listed([self.value(part) for part in parts])
        parts = [part for part in parts_at(tokens, "cup") if part]
        if len(parts) > 1:
            self._count(parts)
            return _united([self.value(part) for part in parts])
        return None

    def _count(self, parts: Sequence[object]) -> None:
        self._num_items += len(parts)
        if self._num_items > MAX_ITEMS:
            raise NoExpressionError(f"more than {MAX_ITEMS} items")

    # --- equations, inequalities ---

    def _related(self, tokens: tuple[Token, ...]) -> Value | None:
        places = [
            i for i in places_outside(tokens) if tokens[i].kind != "word" and tokens[i].text in _RELATIONS
        ]
        if not places:
            return None
        signs = [tokens[i].text for i in places]
        bounds = zip([-1, *places], [*places, len(tokens)], strict=True)
        sides = [tokens[a + 1 : b] for a, b in bounds]
        if signs == ["in"]:
            return self.value(sides[1])
        if set(signs) == {"="}:
            return self._equated(sides)
        return self._inequality(sides, signs)

    def _equated(self, sides: list[tuple[Token, ...]]) -> Value:
        first, last = sides[0], sides[-1]
        if _is_name(first) and not (_letters_of(first) & _letters_of(last) and len(sides) == 2):
            return _named(self.value(last), _name(first))
        if len(sides) == 2 and _is_name(last) and not _letters_of(first) & _letters_of(last):
            return _named(self.value(first), _name(last))
        if len(sides) > 2:
            return self.value(last)
        left, right = expression(first), expression(last)
        return Relation(kind="=", node=add([left, negative(right)]))

    def _inequality(self, sides: list[tuple[Token, ...]], signs: list[str]) -> Value:
        if signs == ["ne"]:
            return Relation(kind="ne", node=add([expression(sides[0]), negative(expression(sides[1]))]))
        letter = [len(side) == 1 and side[0].kind == "letter" for side in sides]
        if len(sides) == 2 and letter[1] and not letter[0]:
            sides, signs, letter = sides[::-1], [_TURNED[signs[0]]], letter[::-1]
        if len(sides) == 2 and letter[0]:
            bound, infinite = self.value(sides[1]), Quantity(node="infty")
            closes = signs[0] in ("le", "ge")
            if signs[0] in ("<", "le"):
                lower = Quantity(node=negative("infty"))
                return Items(kind="tuple", brackets="(" + ("]" if closes else ")"), items=(lower, bound))
            return Items(kind="tuple", brackets=("[" if closes else "(") + ")", items=(bound, infinite))
        if len(sides) == 3 and letter[1]:
            if all(sign in (">", "ge") for sign in signs):
                sides, signs = sides[::-1], [_TURNED[sign] for sign in reversed(signs)]
            if all(sign in ("<", "le") for sign in signs):
                brackets = ("[" if signs[0] == "le" else "(") + ("]" if signs[1] == "le" else ")")
                return Items(
                    kind="tuple", brackets=brackets, items=(self.value(sides[0]), self.value(sides[2]))
                )
        if len(sides) != 2:
            raise NoExpressionError("a chain of relations")
        left, right = expression(sides[0]), expression(sides[1])
        if signs[0] in (">", "ge"):
            left, right, signs = right, left, [_TURNED[signs[0]]]
        return Relation(kind=signs[0], node=add([left, negative(right)]))

    # --- one value ---

    def _single(self, tokens: tuple[Token, ...]) -> Value:
        if closing_place(tokens, 0) == len(tokens) - 1 and step_of(tokens[0]) == 1:
            found = self._bracketed(tokens)
            if found is not None:
                return found
        if any(token.text in ("pm", "mp") and token.kind == "command" for token in tokens):
            return self._both_signs(tokens)
        if tokens == (Token("command", "emptyset", tokens[0].spaced),):
            return Items(kind="set", items=())
        if tokens[0].text == "mathbb" and "".join(token.text for token in tokens[1:]).strip("{}") == "R":
            ends = (Quantity(node=negative("infty")), Quantity(node="infty"))
            return Items(kind="tuple", brackets="()", items=ends)
        return based(tokens) or quantity(tokens)

    def _both_signs(self, tokens: tuple[Token, ...]) -> Value:
        values = []
        for above, below in (("+", "-"), ("-", "+")):
            signs = {"pm": above, "mp": below}
            chosen = tuple(
                replace(token, kind="mark", text=signs[token.text]) if token.text in signs else token
                for token in tokens
            )
            values.append(self.value(chosen))
        return Items(kind="list", items=tuple(values))

    def _bracketed(self, tokens: tuple[Token, ...]) -> Value | None:
        opening, closing, inside = tokens[0].text, tokens[-1].text, tokens[1:-1]
        if opening.startswith("begin "):
            return self._matrix(opening.removeprefix("begin "), inside)
        if opening == "\\{":
            parts = [part for part in parts_at(inside, ",", ";") if part]
            self._count(parts)
            return _set([self.value(part) for part in parts])
        if opening not in ("(", "[", "langle"):
            return None
        if inside and inside[0].text.startswith("begin ") and closing_place(inside, 0) == len(inside) - 1:
            return self.value(inside)
        parts = parts_at(inside, ",", ";")
        if len(parts) == 1:
            is_pair = opening + closing in ("()", "[]")
            return self.value(inside) if is_pair and inside else None
        self._count(parts)
        values = tuple(self.value(part) for part in parts)
        brackets = "<>" if opening == "langle" else opening + closing
        rows = [value.items for value in values if isinstance(value, Items) and value.brackets == "[]"]
        if brackets == "[]" and len(rows) == len(values) and len({len(row) for row in rows}) == 1:
            return Matrix(is_determinant=False, rows=tuple(rows))
        return Items(kind="tuple", brackets=brackets, items=values)

    def _matrix(self, environment: str, inside: tuple[Token, ...]) -> Value:
        if environment not in _MATRICES:
            raise NoExpressionError(f"an environment called {environment}")
        if environment == "array" and inside and inside[0].text == "{":
            inside = inside[closing_place(inside, 0) + 1 :]
        inside = tuple(token for token in inside if token.text != "hline")
        rows = [parts_at(row, "&") for row in parts_at(inside, "\\\\") if row]
        self._count([cell for row in rows for cell in row])
        values = tuple(tuple(self.value(cell) for cell in row) for row in rows)
        return Matrix(is_determinant=environment in ("vmatrix", "Vmatrix"), rows=values)


def _is_interval(value: Value) -> bool:
    return isinstance(value, Items) and (
        value.kind == "union" or (value.kind == "tuple" and len(value.items) == 2)
    )


def _listed(values: Sequence[Value]) -> Value:
    """A list; what a plus-minus sign makes two of is two of its items."""
    return Items(kind="list", items=tuple(_opened(values, "list")))


def _set(values: Sequence[Value]) -> Value:
    distinct: dict[Value, None] = dict.fromkeys(_opened(values, "list"))
    return Items(kind="set", items=tuple(distinct))


def _united(values: Sequence[Value]) -> Value:
    if all(isinstance(value, Items) and value.kind == "set" for value in values):
        return _set([item for value in values for item in value.items])  # type: ignore[union-attr]
    return Items(kind="union", items=tuple(_opened(values, "union")))


def _opened(values: Sequence[Value], kind: str) -> Iterator[Value]:
    for value in values:
        if isinstance(value, Items) and value.kind == kind:
            yield from value.items
        else:
            yield value


def _is_name(side: tuple[Token, ...]) -> bool:
    """Whether a side of an equation only says what the other side is called."""
    if not side:
        return False
    has_name = any(token.kind in ("letter", "word") for token in side)
    allowed = ("(", ")", ",", "_", "{", "}", "angle", "triangle", "overline", "mathbb", "'")
    is_plain = all(token.kind in ("letter", "word") or token.text in allowed for token in side)
    starts = side[0].kind in ("letter", "word") or side[0].text in ("(", "angle", "overline", "triangle")
    subscripts = any(token.text == "_" for token in side)
    numbers = all(token.kind != "number" or subscripts or "(" in {t.text for t in side} for token in side)
    kinds = {token.kind for token in side}
    is_plain = is_plain or (kinds <= {"letter", "word", "mark", "number"} and _is_indexed(side))
    return has_name and starts and is_plain and numbers


def _is_indexed(side: tuple[Token, ...]) -> bool:
    """A letter with a subscript, or a function's name with a number: ``x_1``, ``f(2)``."""
    texts = [token.text for token in side]
    return side[0].kind == "letter" and len(texts) > 2 and texts[1] in ("_", "(") and "+" not in texts


def _letters_of(side: Sequence[Token]) -> set[str]:
    return {token.text for token in side if token.kind == "letter"} if len(side) == 1 else set()


def _name(side: Sequence[Token]) -> str:
    return "".join(token.text for token in side if token.text not in "{}").casefold()


def _named(value: Value, name: str) -> Value:
    if isinstance(value, Quantity) and value.node == name:
        return value
    return replace(value, name=name) if isinstance(value, Quantity) else value
