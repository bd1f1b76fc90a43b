"""Units of measurement by one name each; nothing is converted: 5 m is not 500 cm."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from treeshare.evals.math_judge.tokens import Token

_SPELLINGS = {
    "mm": "millimeter millimetre",
    "cm": "centimeter centimetre",
    "m": "meter metre",
    "km": "kilometer kilometre",
    "in": "inch inches",
    "ft": "foot feet",
    "yd": "yard",
    "mi": "mile",
    "mg": "milligram",
    "g": "gram gramme",
    "kg": "kilogram kilo",
    "lb": "pound lbs",
    "oz": "ounce",
    "ml": "milliliter millilitre mL",
    "l": "liter litre L",
    "s": "second sec secs",
    "min": "minute mins",
    "h": "hour hr hrs",
    "day": "",
    "week": "",
    "month": "",
    "year": "yr",
    "dollar": "USD usd",
    "cent": "",
    "euro": "EUR eur",
    "GBP": "gbp",
    "degree": "deg",
    "rad": "radian",
    "Hz": "hertz",
    "N": "newton",
    "J": "joule",
    "W": "watt",
    "K": "kelvin",
    "Pa": "pascal",
    "V": "volt",
    "A": "ampere amp",
    "mol": "mole",
    "C": "celsius",
    "F": "fahrenheit",
    "gal": "gallon",
    "qt": "quart",
    "pt": "pint",
    "person": "people",
    "am": "AM",
    "pm": "PM",
}
_NAMES = {word: unit for unit, words in _SPELLINGS.items() for word in (unit, *words.split())}
_SPEEDS = {"mph": "mi", "kph": "km", "kmh": "km"}
_POWERS = {"square": 2, "sq": 2, "squared": 2, "cubic": 3, "cu": 3, "cubed": 3}
_NO_UNITS = frozenset(("unit", "units"))


def is_unit(word: str) -> bool:
    """Whether a word is the name of a unit."""
    first = word.split()[0].strip(".") if word.split() else ""
    return _name(first) in _SPELLINGS or first in _POWERS or first in _SPEEDS or first in _NO_UNITS


def unit_of(tokens: Sequence[Token]) -> str | None:
    """The unit that tokens after a number name, in one form; empty for plain ``units``; None if it is none.

    Powers and quotients are kept: ``square cm``, ``cm^2`` and ``cm²`` are one.
    """
    found = _Factors()
    place = 0
    while place < len(tokens):
        token = tokens[place]
        place += 1
        if token.kind in ("word", "letter"):
            for word in _spelled_out(token.text):
                found.take(word)
        elif token.text == "/":
            found.take("/")
        elif token.text == "^" and found.last:
            power, place = _power(tokens, place)
            if power is None:
                return None
            found.exponents[found.last] *= power
        elif token.text not in ("*", "(", ")", "{", "}", "."):
            return None
    powers = {name: exponent for name, exponent in found.exponents.items() if name not in _NO_UNITS}
    return " ".join(name if e == 1 else f"{name}^{e}" for name, e in sorted(powers.items()) if e)


class _Factors:
    """A unit's factors so far, each with its exponent."""

    def __init__(self) -> None:
        self.exponents: dict[str, int] = {}
        self.last = ""
        self._sign = self._front = 1

    def take(self, word: str) -> None:
        """Take in a word of the unit."""
        if word in ("per", "/"):
            self._sign = -1
        elif word in _POWERS and word.endswith("ed"):
            if self.last:
                self.exponents[self.last] *= _POWERS[word]
        elif word in _POWERS:
            self._front = _POWERS[word]
        elif word and word not in ("of", "the", "a", "an"):
            self.last = _name(word)
            self.exponents[self.last] = self.exponents.get(self.last, 0) + self._sign * self._front
            self._front = 1


def _spelled_out(text: str) -> list[str]:
    words = [word.strip(".,;:!").replace(".", "") for word in text.replace("/", " / ").split()]
    return " ".join(f"{_SPEEDS[word]} / h" if word in _SPEEDS else word for word in words).split()


def _name(word: str) -> str:
    if word in _NAMES:
        return _NAMES[word]
    small = word.casefold()
    if small in _NAMES:
        return _NAMES[small]
    single = small[:-1] if len(small) > 3 and small.endswith("s") and not small.endswith("ss") else small
    return _NAMES.get(single, single)


def _power(tokens: Sequence[Token], place: int) -> tuple[int | None, int]:
    """A power after a unit's name, and where it ends."""
    sign = 1
    while place < len(tokens) and tokens[place].text in ("{", "-"):
        sign = -1 if tokens[place].text == "-" else sign
        place += 1
    if place == len(tokens) or not tokens[place].text.isdecimal() or len(tokens[place].text) > 2:
        return None, place
    power = sign * int(tokens[place].text)
    place += 1
    if place < len(tokens) and tokens[place].text == "}":
        place += 1
    return power, place
