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
    negative,
    power,
    quotient,
    root,
)
from treeshare.evals.math_judge.tokens import Token
from treeshare.evals.math_judge.vocabulary import FUNCTIONS

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_DEPTH = 40
"""Of brackets, fractions, roots and powers inside each other."""

_MAX_EXPONENT = 3000
_END = Token("mark", "")
_CALLED = ("f", "g", "h")
_AFTER_ARGUMENT = FUNCTIONS | {"pm", "mp"}


class NoExpressionError(ValueError):
    """The tokens are no expression; the message says at which."""


def expression(tokens: Sequence[Token]) -> Node:
    """The expression that all tokens together are.

    Raises:
        NoExpressionError: If they are none.
        NoValueError: If it has no value.
        TooLargeError: If a number in it is too large.
    """
    parser = _Parser(tokens)
    node = parser.sum()
    parser.expect_end()
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
    def __init__(self, tokens: Sequence[Token]) -> None:
        self._tokens = tokens
        self._place = 0
        self._depth = 0
        self._bars = 0

    # --- tokens ---

    def _peek(self, ahead: int = 0) -> Token:
        place = self._place + ahead
        return self._tokens[place] if place < len(self._tokens) else _END

    def _take(self) -> Token:
        token = self._peek()
        self._place += 1
        return token

    def _at(self, *texts: str) -> bool:
        token = self._peek()
        return token.kind in ("mark", "command") and token.text in texts

    def _skip(self, *texts: str) -> bool:
        found = self._at(*texts)
        self._place += found
        return found

    def _expect(self, text: str) -> None:
        if not self._skip(text):
            raise NoExpressionError(f"expected {text}, got {self._peek().text or 'the end'}")

    def expect_end(self) -> None:
        """Refuse what is left over."""
        if self._place < len(self._tokens):
            raise NoExpressionError(f"nothing can be made of {self._peek().text[:40]}")

    # --- sums, products, powers ---

    def sum(self) -> Node:
        """An expression up to what cannot belong to it."""
        self._deeper()
        sign = self._sign()
        terms = [mul([sign, self._product()])]
        while self._at("+", "-"):
            sign = self._sign()
            terms.append(mul([sign, self._product()]))
        self._depth -= 1
        return add(terms)

    def _deeper(self) -> None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise NoExpressionError(f"nested deeper than {MAX_DEPTH}")

    def _sign(self) -> Fraction:
        sign = ONE
        while self._at("+", "-"):
            sign = -sign if self._take().text == "-" else sign
        return sign

    def _product(self, *, of_function: bool = False) -> Node:
        factors = [self._mixed_or_power()]
        while True:
            if self._skip("*"):
                factors.append(mul([self._sign(), self._power()]))
            elif self._skip("/"):
                factors.append(quotient(ONE, mul([self._sign(), self._power()])))
            elif self._begins_factor() and not (of_function and self._ends_argument()):
                factors.append(self._power())
            else:
                return mul(factors)

    def _begins_factor(self) -> bool:
        token = self._peek()
        if token.kind in ("number", "letter", "word"):
            return True
        if token.kind == "mark":
            return token.text in ("(", "[", "{") or (token.text == "|" and not self._bars)
        is_meant = token.text in ("frac", "sqrt", "root", "binom", "lfloor", "lceil", "infty", "operatorname")
        return token.kind == "command" and (is_meant or token.text in FUNCTIONS)

    def _ends_argument(self) -> bool:
        token = self._peek()
        return token.text in _AFTER_ARGUMENT or token.text in ("(", "[")

    def _mixed_or_power(self) -> Node:
        """A power, or a whole number with a fraction behind it."""
        token, then = self._peek(), self._peek(1)
        if token.kind == "number" and token.text.isdigit():
            if then.kind == "command" and then.text == "frac":
                fraction = self._fraction_of_digits(1)
                if fraction is not None:
                    return add([number_of(token.text), fraction])
            slash, below = self._peek(2), self._peek(3)
            is_plain = then.kind == below.kind == "number" and slash.text == "/" and then.spaced
            if is_plain and then.text.isdigit() and below.text.isdigit():
                self._place += 4
                return add([number_of(token.text), quotient(number_of(then.text), number_of(below.text))])
        return self._power()

    def _fraction_of_digits(self, ahead: int) -> Node | None:
        r"""The ``\frac`` of two whole numbers behind a whole number, taken with it; None if it is another."""
        start = self._place
        self._place += ahead
        node = self._power()
        is_power = any(token.text == "^" for token in self._tokens[start + ahead : self._place])
        if isinstance(node, Fraction) and 0 < node < 1 and not is_power:
            return node
        self._place = start
        return None

    def _power(self) -> Node:
        base = self._atom()
        for _ in range(MAX_DEPTH):
            if self._skip("!"):
                base = arithmetic.factorial(base)
            elif self._at("^"):
                self._take()
                if self._peek().text in ("prime", "'"):
                    raise NoExpressionError("a derivative")
                base = mul([base, "degree"]) if self._skips_degree() else power(base, self._exponent())
            elif self._at("circ"):
                self._take()
                base = mul([base, "degree"])
            elif self._at("%"):
                self._take()
                base = mul([base, Fraction(1, 100)])
            else:
                return base
        raise NoExpressionError(f"more than {MAX_DEPTH} powers of one another")

    def _skips_degree(self) -> bool:
        if [self._peek(i).text for i in range(3)] == ["{", "circ", "}"]:
            self._place += 3
            return True
        return self._skip("circ")

    def _exponent(self) -> Node:
        """What is raised: a group, a sign and a number, or one letter or command."""
        sign = self._sign()
        self._deeper()
        node = self._atom()
        if self._at("^"):
            self._take()
            node = power(node, self._exponent())
        self._depth -= 1
        return mul([sign, node])

    # --- atoms ---

    def _atom(self) -> Node:
        token = self._take()
        if token.kind == "number":
            return self._number(token)
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
        self._tokens = [*self._tokens[: self._place], *others, *self._tokens[self._place :]]
        return self._letter(word.text[0])

    def _number(self, token: Token) -> Node:
        value = number_of(token.text)
        if self._at("overline") and "." in token.text:
            self._take()
            period = self._digits()
            decimals = len(token.text.partition(".")[2])
            return value + Fraction(int(period), (10 ** len(period) - 1) * 10**decimals)
        if self._at("_"):
            raise NoExpressionError("a base inside an expression")
        return value

    def _digits(self) -> str:
        is_group = self._skip("{")
        token = self._take()
        if token.kind != "number" or not token.text.isdigit():
            raise NoExpressionError("a period that is no digits")
        if is_group:
            self._expect("}")
        return token.text

    def _letter(self, name: str) -> Node:
        if self._skip("_"):
            name = f"{name}_{self._subscript()}"
        primes = 0
        while self._skip("'"):
            primes += 1
        name += "'" * primes
        if name in _CALLED and self._at("("):
            self._take()
            arguments = [self.sum()]
            while self._skip(","):
                arguments.append(self.sum())
            self._expect(")")
            return ("call", name, *arguments)
        return name

    def _subscript(self) -> str:
        if not self._skip("{"):
            return self._take().text
        parts = []
        while not self._at("}", ""):
            parts.append(self._take().text)
        self._expect("}")
        return "".join(parts)

    def _bracketed(self, opening: str) -> Node:
        closing = {"(": ")", "[": "]", "{": "}"}.get(opening)
        if closing:
            node = self.sum()
            if opening == "{" and self._skip("choose"):
                node = arithmetic.binomial(node, self.sum())
            self._expect(closing)
            return node
        if opening == "|":
            self._bars += 1
            node = self.sum()
            self._expect("|")
            self._bars -= 1
            return _called("abs", node)
        raise NoExpressionError(f"nothing can be made of {opening[:40] or 'the end'}")

    def _command(self, name: str) -> Node:
        self._deeper()
        node = self._called_command(name)
        self._depth -= 1
        return node

    def _called_command(self, name: str) -> Node:
        if name == "frac":
            return quotient(self._argument(), self._argument())
        if name == "binom":
            return arithmetic.binomial(self._argument(), self._argument())
        if name == "sqrt":
            degree: Node = Fraction(2)
            if self._skip("["):
                degree = self.sum()
                self._expect("]")
            return root(self._argument(), degree)
        if name == "root":
            return root(self._atom(), Fraction(2))
        if name == "infty":
            return "infty"
        if name in ("lfloor", "lceil"):
            node = self.sum()
            self._expect("rfloor" if name == "lfloor" else "rceil")
            return _called("floor" if name == "lfloor" else "ceil", node)
        if name in FUNCTIONS:
            return self._function(name)
        raise NoExpressionError(f"nothing can be made of {name[:40]}")

    def _argument(self) -> Node:
        r"""What ``\frac`` and ``\sqrt`` take: a group, one digit, one letter, or a command with its own."""
        self._deeper()
        token = self._peek()
        if token.kind == "number" and len(token.text) > 1 and token.text.isdigit():
            rest = Token("number", token.text[1:], False)
            self._tokens = [*self._tokens[: self._place], rest, *self._tokens[self._place + 1 :]]
            node: Node = Fraction(int(token.text[0]))
        else:
            node = self._atom()
        self._depth -= 1
        return node

    def _function(self, name: str) -> Node:
        base: Node | None = None
        exponent: Node | None = None
        while self._at("_", "^"):
            if self._take().text == "_":
                base = self._exponent()
            else:
                exponent = self._exponent()
        if exponent == Fraction(-1) and name in ("sin", "cos", "tan"):
            name, exponent = "a" + name, None
        if self._at("(", "[", "{", "|"):
            argument = self._power() if self._at("|") else self._atom()
        else:
            argument = mul([self._sign(), self._product(of_function=True)])
        node = _called(name, argument) if base is None else ("log", argument, base)
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
    if name == "abs" and argument == negative(argument):
        return argument
    return (name, argument)
