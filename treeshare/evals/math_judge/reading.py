"""Reads an answer's text: what cannot be read is said to be ``Unread``, never an error."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from treeshare.evals.math_judge.answers import Answer, Items, Matrix, Quantity, Unread, Value, Words, exact
from treeshare.evals.math_judge.arithmetic import NoValueError, TooLargeError
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
from treeshare.evals.math_judge.relations import RELATIONS, between_bounds, related, without_points
from treeshare.evals.math_judge.tokens import MAX_CHARS, Token, tokens_of
from treeshare.evals.math_judge.units import is_unit
from treeshare.evals.math_judge.wording import REALS, labelled, meaning, scaled, without_carriers

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MAX_ITEMS = 100
"""Of a list, a set or a matrix."""

_MATRICES = ("matrix", "pmatrix", "bmatrix", "Bmatrix", "smallmatrix", "array", "vmatrix", "Vmatrix")
_MAX_DEPTH = 8
_MAX_CALCULUS = 100
"""Tokens."""


def read_answer(text: str) -> Answer:
    """Read an answer; what cannot be read is ``Unread``, never an error."""
    if len(text) > MAX_CHARS:
        reason = f"longer than {MAX_CHARS} characters"
        return Answer(text=text, normal=" ".join(text.split()), words="", value=Unread(reason))
    label, tokens = labelled(trimmed(without_carriers(trimmed(tokens_of(text)))))
    tokens = trimmed(tokens)
    if _is_calculus(tokens):
        value: Value = Quantity(node=("latex", text.strip().strip("$.")))
        return Answer(text=text, normal=" ".join(token.text for token in tokens), words="", value=value)
    return Answer(
        text=text,
        normal=" ".join(token.text for token in tokens),
        words=words_of(tokens),
        value=_value(scaled(tokens)),
        other=None if label else _other_reading(text, tokens),
        label=label,
    )


def _other_reading(text: str, tokens: tuple[Token, ...]) -> Value | None:
    listed = trimmed(tokens_of(text, commas_group=False)) if "," in text else tokens
    if listed != tokens:
        return _value(listed)
    rounded = [place for place, token in enumerate(tokens) if token.text == "approx"]
    if rounded:
        return _value(tokens[rounded[-1] + 1 :])
    if scaled(tokens) != tokens:
        return _value(tokens)  # millions as a unit
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
        found = (
            self._words(tokens)
            or self._several(tokens)
            or related(tokens, self.value)
            or self._single(tokens)
        )
        self._depth -= 1
        return found

    def _words(self, tokens: tuple[Token, ...]) -> Value | None:
        """Words, if no part is arithmetic."""
        if len(tokens) == 1 and tokens[0].text.casefold() == "no":
            return Words("no")
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
        has_relation = any(token.text in RELATIONS for token in tokens)
        if not is_text and not (begins and not has_relation):
            return None
        words = words_of(tokens)
        return meaning(words) or Words(words)

    def _several(self, tokens: tuple[Token, ...]) -> Value | None:
        """A list, or a union of intervals."""
        parts = [part for part in parts_at(tokens, ",", ";", "and", "or") if part]
        if len(parts) > 1:
            self._count(parts)
            if any(token.text == "or" for token in tokens):
                values = [self.value(part) for part in parts]
                if all(_is_interval(value) for value in values):
                    return Items(kind="union", items=tuple(values))
                values = list(dict.fromkeys(values))  # 1/2 or 0.5
                return values[0] if len(values) == 1 else _listed(values)
            return between_bounds(parts, self.value) or _listed([self.value(part) for part in parts])
        parts = [part for part in parts_at(tokens, "cup") if part]
        if len(parts) > 1:
            self._count(parts)
            return _united([self.value(part) for part in parts])
        parts = parts_at(tokens, "setminus")
        if len(parts) == 1 and tokens[0].text == "mathbb":
            parts = parts_at(tokens, "-")
        if len(parts) == 2 and all(parts):
            return _without(*(self.value(part) for part in parts))
        parts = parts_at(tokens, ":")
        if len(parts) > 1 and all(parts):
            self._count(parts)
            return Items(kind="tuple", brackets=":", items=tuple(self.value(part) for part in parts))
        return None

    def _count(self, parts: Sequence[object]) -> None:
        self._num_items += len(parts)
        if self._num_items > MAX_ITEMS:
            raise NoExpressionError(f"more than {MAX_ITEMS} items")

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
        if (
            tokens[0].text in ("triangle", "angle")
            and len(tokens) > 1
            and tokens[1].kind in ("letter", "word")
        ):
            return self.value(tokens[1:])  # a figure by its corners
        if tokens[0].text == "mathbb" and tokens[0].kind == "command":
            numbers = "".join(token.text for token in tokens[1:]).strip("{}")
            if numbers in ("R", "N", "Z", "Q", "C"):
                return REALS if numbers == "R" else Words(f"the set {numbers}")
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
            condition = _condition(inside)
            if condition:
                return self.value(condition)
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
        if opening == "[" and all(_is_column_entry(part) for part in parts):
            return Matrix(is_determinant=False, rows=tuple((self.value(part),) for part in parts))
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


def _is_column_entry(part: tuple[Token, ...]) -> bool:
    """Whether this is a matrix's row of one entry: ``[1]`` of ``[[1],[2]]``."""
    is_row = len(part) > 2 and part[0].text == "[" and closing_place(part, 0) == len(part) - 1
    return is_row and len(parts_at(part[1:-1], ",", ";")) == 1


def _condition(inside: tuple[Token, ...]) -> tuple[Token, ...]:
    r"""The condition of ``\{x \mid x > 3\}``; nothing if this is no such set."""
    bars = [place for place in places_outside(inside) if inside[place].text in ("|", ":")]
    texts = [token.text for token in inside[: bars[0]]] if bars else []
    is_letter = (
        bool(texts) and inside[0].kind == "letter" and texts[1:] in ([], ["in", "mathbb", "{", "R", "}"])
    )
    return inside[bars[0] + 1 :] if is_letter else ()


def _without(value: Value, points: Value) -> Value:
    numbers = [exact(item) for item in points.items] if isinstance(points, Items) else []
    found = [number for number in numbers if number is not None]
    if value != REALS or not found or len(found) != len(numbers):
        raise NoExpressionError("a difference of sets")
    return without_points(found)


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
