r"""Reads tokens as an expression; ``10^{10^{10}}`` is read, not computed.

LaTeX's rules where a text is LaTeX (``\frac12``, ``\sqrt23`` is three times the root of two), plain text's
otherwise (``sqrt(5)``, ``2^10``, ``x**2``). ``4\frac{2}{3}`` and ``4 2/3`` are mixed numbers.
"""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

from treeshare.evals.math_judge import arithmetic
from treeshare.evals.math_judge.arithmetic import (
    ONE,
    Node,
    add,
    bounded,
    mul,
    power,
    quotient,
    root,
)
from treeshare.evals.math_judge.cursor import MAX_DEPTH, Cursor, NoExpressionError
from treeshare.evals.math_judge.tokens import Token
from treeshare.evals.math_judge.vocabulary import FUNCTIONS
from treeshare.evals.math_judge.whole_numbers import OF_SEVERAL, of_several, remainder

if TYPE_CHECKING:
    from collections.abc import Sequence

_MAX_EXPONENT = 3000
_CALLED = ("f", "g", "h")
_BEGIN_FACTOR = (
    "frac", "sqrt", "root", "binom", "lfloor", "lceil", "infty", "operatorname", "overline", *OF_SEVERAL
)  # fmt: skip
_AFTER_ARGUMENT = FUNCTIONS | {"pm", "mp"}


def expression(tokens: Sequence[Token]) -> Node:
    """The expression that all tokens together are.

    Raises:
        NoExpressionError: If they are none.
        NoValueError: If it has no value.
        TooLargeError: If a number in it is too large.
    """
    cursor = Cursor(tokens)
    parser = _Parser(cursor)
    node = parser.sum()
    if cursor.skip("choose"):
        node = arithmetic.binomial(node, parser.sum())
    cursor.expect_end()
    return node


def number_of(text: str) -> Fraction:
    """The number that digits stand for, exactly.

    Raises:
        TooLargeError: If it is too large.
    """
    digits, _, exponent = text.partition("e")
    whole, _, decimals = digits.partition(".")
    shift = int(exponent or "0")
    if len(whole) + len(decimals) + abs(shift) > _MAX_EXPONENT + 600:
        raise arithmetic.TooLargeError("a number of more than 3600 digits")
    value = Fraction(int(whole + decimals or "0"), 10 ** len(decimals))
    return bounded(value * 10**shift if shift >= 0 else value / 10**-shift)


class _Parser:
    def __init__(self, tokens: Cursor) -> None:
        self._tokens = tokens
        self._bars = 0
        self._split_at = -1

    # --- sums, products, powers ---

    def sum(self) -> Node:
        """An expression up to what cannot belong to it."""
        self._tokens.deeper()
        sign = _sign(self._tokens)
        terms = [mul([sign, self._product()])]
        while self._tokens.at("+", "-"):
            sign = _sign(self._tokens)
            terms.append(mul([sign, self._product()]))
        node = add(terms)
        while self._tokens.skip("bmod") or self._tokens.skip("mod"):
            node = remainder(node, mul([_sign(self._tokens), self._product()]))
        self._tokens.back_out()
        return node

    def _product(self, *, of_function: bool = False) -> Node:
        factors = [self._mixed_or_power()]
        while True:
            if self._tokens.skip("*"):
                factors.append(mul([_sign(self._tokens), self._power()]))
            elif self._tokens.skip("/"):
                factors.append(quotient(ONE, mul([_sign(self._tokens), self._power()])))
            elif self._begins_factor() and not (of_function and _ends_argument(self._tokens)):
                factors.append(self._power())
            else:
                return mul(factors)

    def _begins_factor(self) -> bool:
        token = self._tokens.peek()
        if token.kind == "number" and self._tokens.last_kind() == "number":
            if self._tokens.mark() != self._split_at:
                raise NoExpressionError("two numbers side by side")
            return True
        if token.kind in ("number", "letter", "word"):
            return True
        if token.kind == "mark":
            return token.text in ("(", "[", "{") or (token.text == "|" and not self._bars)
        return token.kind == "command" and (token.text in _BEGIN_FACTOR or token.text in FUNCTIONS)

    def _mixed_or_power(self) -> Node:
        """A power, or a whole number with a fraction after it."""
        token, then = self._tokens.peek(), self._tokens.peek(1)
        if token.kind == "number" and token.text.isdigit():
            if then.kind == "command" and then.text == "frac":
                fraction = self._fraction_of_digits(1)
                if fraction is not None:
                    return add([number_of(token.text), fraction])
            slash, below = self._tokens.peek(2), self._tokens.peek(3)
            is_plain = then.kind == below.kind == "number" and slash.text == "/" and then.spaced
            if is_plain and then.text.isdigit() and below.text.isdigit():
                self._tokens.back(self._tokens.mark() + 4)
                return add([number_of(token.text), quotient(number_of(then.text), number_of(below.text))])
        return self._power()

    def _fraction_of_digits(self, ahead: int) -> Node | None:
        r"""The ``\frac`` of two whole numbers after a whole number, taken with it; None if it is another."""
        start = self._tokens.mark()
        self._tokens.back(start + ahead)
        node = self._power()
        is_power = any(token.text == "^" for token in self._tokens.since(start + ahead))
        if isinstance(node, Fraction) and 0 < node < 1 and not is_power:
            return node
        self._tokens.back(start)
        return None

    def _power(self) -> Node:
        base = self._atom()
        for _ in range(MAX_DEPTH):
            if self._tokens.skip("!"):
                base = arithmetic.factorial(base)
            elif self._tokens.at("^"):
                self._tokens.take()
                if self._tokens.peek().text in ("prime", "'"):
                    raise NoExpressionError("a derivative")
                base = mul([base, "degree"]) if _skips_degree(self._tokens) else power(base, self._exponent())
            elif self._tokens.at("circ"):
                self._tokens.take()
                base = mul([base, "degree"])
            elif self._tokens.at("%"):
                self._tokens.take()
                base = mul([base, Fraction(1, 100)])
            else:
                return base
        raise NoExpressionError(f"more than {MAX_DEPTH} powers of one another")

    def _exponent(self) -> Node:
        """What is raised: a group, a sign and a number, or one letter or command."""
        sign = _sign(self._tokens)
        self._tokens.deeper()
        node = self._atom()
        if self._tokens.at("^"):
            self._tokens.take()
            node = power(node, self._exponent())
        self._tokens.back_out()
        return mul([sign, node])

    # --- atoms ---

    def _atom(self) -> Node:
        token = self._tokens.take()
        if token.kind == "number":
            return _number(self._tokens, token)
        if token.kind == "letter":
            return self._letter(token.text)
        if token.kind == "word":
            return self._first_letter(token)
        if token.kind == "mark":
            return self._bracketed(token.text)
        if token.kind == "command":
            return self._command(token.text)
        raise NoExpressionError(f"nothing can be made of {token.text[:40] or 'the end'}")

    def _first_letter(self, word: Token) -> Node:
        """The first of a product of letters without signs between them; the others are still to come."""
        if len(word.text) > 12 or not word.text.isalpha() or not word.text.isascii():
            raise NoExpressionError(f"the word {word.text[:40]}")
        others = [Token("letter", letter) for letter in word.text[1:]]
        self._tokens.insert(others)
        return self._letter(word.text[0])

    def _letter(self, name: str) -> Node:
        if self._tokens.skip("_"):
            name = f"{name}_{_subscript(self._tokens)}"
        primes = 0
        while self._tokens.skip("'"):
            primes += 1
        name += "'" * primes
        if name in _CALLED and self._tokens.at("("):
            self._tokens.take()
            arguments = [self.sum()]
            while self._tokens.skip(","):
                arguments.append(self.sum())
            self._tokens.expect(")")
            return ("call", name, *arguments)
        return name

    def _bracketed(self, opening: str) -> Node:
        closing = {"(": ")", "[": "]", "{": "}"}.get(opening)
        if closing:
            node = self.sum()
            if opening == "{" and self._tokens.skip("choose"):
                node = arithmetic.binomial(node, self.sum())
            self._tokens.expect(closing)
            return node
        if opening == "|":
            self._bars += 1
            node = self.sum()
            self._tokens.expect("|")
            self._bars -= 1
            return _called("abs", node)
        raise NoExpressionError(f"nothing can be made of {opening[:40] or 'the end'}")

    def _command(self, name: str) -> Node:
        self._tokens.deeper()
        node = self._called_command(name)
        self._tokens.back_out()
        return node

    def _called_command(self, name: str) -> Node:
        if name == "frac":
            return quotient(self._argument(), self._argument())
        if name == "binom":
            return arithmetic.binomial(self._argument(), self._argument())
        if name == "sqrt":
            degree: Node = Fraction(2)
            if self._tokens.skip("["):
                degree = self.sum()
                self._tokens.expect("]")
            return root(self._argument(), degree)
        if name in ("root", "infty"):
            return "infty" if name == "infty" else root(self._atom(), Fraction(2))
        if name in ("lfloor", "lceil"):
            node = self.sum()
            self._tokens.expect("rfloor" if name == "lfloor" else "rceil")
            return _called("floor" if name == "lfloor" else "ceil", node)
        if name in FUNCTIONS:
            return self._function(name)
        if name in OF_SEVERAL:
            return of_several(name, self._arguments())
        if name == "overline":
            return self._overlined()
        raise NoExpressionError(f"nothing can be made of {name[:40]}")

    def _arguments(self) -> list[Node]:
        r"""Of ``\gcd`` and the like: in parentheses or braces, with commas between them."""
        opening = self._tokens.take().text
        closing = {"(": ")", "[": "]", "{": "}", "\\{": "\\}"}.get(opening)
        if closing is None:
            raise NoExpressionError("a function without its arguments")
        found = [self.sum()]
        while self._tokens.skip(","):
            found.append(self.sum())
        self._tokens.expect(closing)
        return found

    def _overlined(self) -> Node:
        """A segment is the product of its ends, as ``AB`` without a line is; else a thing of its own."""
        inside = self._argument()
        ends = inside[1:] if isinstance(inside, tuple) and inside[0] == "*" else ()
        if len(ends) == 2 and all(isinstance(end, str) and end.isupper() for end in ends):
            return inside
        return ("call", "overline", inside)

    def _argument(self) -> Node:
        r"""What ``\frac`` and ``\sqrt`` take: a group, one digit, one letter, or a command with its own."""
        self._tokens.deeper()
        token = self._tokens.peek()
        if token.kind == "number" and len(token.text) > 1 and token.text.isdigit():
            self._tokens.take()
            self._tokens.insert([Token("number", token.text[1:])])
            self._split_at = self._tokens.mark()
            node: Node = Fraction(int(token.text[0]))
        else:
            node = self._atom()
        self._tokens.back_out()
        return node

    def _function(self, name: str) -> Node:
        base: Node | None = None
        exponent: Node | None = None
        while self._tokens.at("_", "^"):
            if self._tokens.take().text == "_":
                base = self._exponent()
            else:
                exponent = self._exponent()
        if exponent == Fraction(-1) and name in ("sin", "cos", "tan"):
            name, exponent = "a" + name, None
        if self._tokens.at("(", "[", "{", "|"):
            argument = self._power() if self._tokens.at("|") else self._atom()
        else:
            argument = mul([_sign(self._tokens), self._product(of_function=True)])
        node = _called(name, argument) if base is None else arithmetic.logarithm(argument, base)
        return node if exponent is None else power(node, exponent)


def _called(name: str, argument: Node) -> Node:
    """A function's value, where it is plain arithmetic; otherwise the call."""
    if isinstance(argument, Fraction):
        if name == "abs":
            return abs(argument)
        if name in ("floor", "ceil"):
            return Fraction(argument.__floor__() if name == "floor" else argument.__ceil__())
    if name == "cbrt":
        return root(argument, Fraction(3))
    if name == "exp":
        return power("e", argument)
    return (name, argument)


def _sign(tokens: Cursor) -> Fraction:
    """1 or -1, for any number of signs."""
    sign = ONE
    while tokens.at("+", "-"):
        sign = -sign if tokens.take().text == "-" else sign
    return sign


def _skips_degree(tokens: Cursor) -> bool:
    if [tokens.peek(i).text for i in range(3)] == ["{", "circ", "}"]:
        tokens.back(tokens.mark() + 3)
        return True
    return tokens.skip("circ")


def _digits(tokens: Cursor) -> str:
    is_group = tokens.skip("{")
    token = tokens.take()
    if token.kind != "number" or not token.text.isdigit():
        raise NoExpressionError("a period that is no digits")
    if is_group:
        tokens.expect("}")
    return token.text


def _subscript(tokens: Cursor) -> str:
    if not tokens.skip("{"):
        return tokens.take().text
    parts = []
    while not tokens.at("}", ""):
        parts.append(tokens.take().text)
    tokens.expect("}")
    return "".join(parts)


def _number(tokens: Cursor, token: Token) -> Node:
    value = number_of(token.text)
    if tokens.at("overline") and "." in token.text:
        tokens.take()
        period = _digits(tokens)
        decimals = len(token.text.partition(".")[2])
        return value + Fraction(int(period), (10 ** len(period) - 1) * 10**decimals)
    if tokens.at("_"):
        raise NoExpressionError("a base inside an expression")
    return value


def _ends_argument(tokens: Cursor) -> bool:
    token = tokens.peek()
    return token.text in _AFTER_ARGUMENT or token.text in ("(", "[")
