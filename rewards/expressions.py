"""Arithmetic expressions, read by a small parser and computed as exact fractions.

    expression = term { ("+" | "-") term }
    term       = factor { ("*" | "/") factor }
    factor     = ("+" | "-") factor | power
    power      = primary [ "^" factor ]      "**" too; binds tighter than a sign, to the right
    primary    = number | "(" expression ")"

`×`, `·`, `÷`, `−` (Unicode) are read as `*`, `*`, `/`, `-`. A number is written as in `46`,
`1,000`, `0.5`, `.5`. There are no names, no functions, and no product without a sign. Nothing is
ever evaluated by Python, and three limits keep what is computed small: `MAX_CHARACTERS`,
`MAX_DEPTH` and `MAX_BITS`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from fractions import Fraction

MAX_CHARACTERS = 1000
MAX_DEPTH = 50  # brackets, signs and powers within one another
MAX_BITS = 1000  # of the numerator and the denominator of every value on the way

_SPELLED = str.maketrans({"\u2212": "-", "×": "*", "·": "*", "÷": "/"})
_TOKEN = re.compile(
    r"\s*(?:((?:[1-9][0-9]{0,2}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)(?![\w.,])"
    r"|(\*\*|[-+*/^()]))"
)


class NotComputable(ValueError):
    """A text that is no expression, or whose value is undefined or too large; says why."""


@dataclass(frozen=True)
class Computed:
    """The value of an expression, and the numbers that are written in it, in their order."""

    value: Fraction
    numbers: tuple[Fraction, ...]


def compute(text: str) -> Computed:
    """The exact value of an arithmetic expression.

    Raises:
        NotComputable: if the text is anything else, divides by zero, raises to a power that is no
            integer, or goes beyond a limit.
    """
    if len(text) > MAX_CHARACTERS:
        raise NotComputable(f"longer than {MAX_CHARACTERS} characters")
    reading = _Reading(_split(text.translate(_SPELLED)))
    value = reading.expression(0)
    if reading.next is not None:
        raise NotComputable(f"{reading.next!r} where the expression should end")
    return Computed(value, tuple(reading.numbers))


def _split(text: str) -> list[str]:
    tokens = []
    position = 0
    text = text.rstrip()
    while position < len(text):
        found = _TOKEN.match(text, position)
        if found is None:
            raise NotComputable(f"cannot read {text[position : position + 20]!r}")
        tokens.append(found[1] or found[2])
        position = found.end()
    return tokens


@dataclass
class _Reading:
    """Where the parser stands in the tokens, and the numbers that it has passed."""

    tokens: list[str]
    at: int = 0
    numbers: list[Fraction] = field(default_factory=list)

    @property
    def next(self) -> str | None:
        return self.tokens[self.at] if self.at < len(self.tokens) else None

    def take(self, *choices: str) -> str | None:
        found = self.next
        if found not in choices:
            return None
        self.at += 1
        return found

    def expression(self, depth: int) -> Fraction:
        value = self.term(depth)
        while sign := self.take("+", "-"):
            other = self.term(depth)
            value = _small(value + other if sign == "+" else value - other)
        return value

    def term(self, depth: int) -> Fraction:
        value = self.factor(depth)
        while sign := self.take("*", "/"):
            other = self.factor(depth)
            if sign == "/" and other == 0:
                raise NotComputable("a division by zero")
            value = _small(value * other if sign == "*" else value / other)
        return value

    def factor(self, depth: int) -> Fraction:
        if depth > MAX_DEPTH:
            raise NotComputable(f"nested deeper than {MAX_DEPTH}")
        sign = self.take("+", "-")
        if sign is None:
            return self.power(depth)
        value = self.factor(depth + 1)
        return -value if sign == "-" else value

    def power(self, depth: int) -> Fraction:
        base = self.primary(depth)
        return _raised(base, self.factor(depth + 1)) if self.take("^", "**") else base

    def primary(self, depth: int) -> Fraction:
        token = self.next
        if token is None:
            raise NotComputable("it ends where a number should be")
        self.at += 1
        if token == "(":
            value = self.expression(depth + 1)
            if self.take(")") is None:
                raise NotComputable("a bracket is not closed")
            return value
        if token[-1] not in "0123456789":
            raise NotComputable(f"{token!r} where a number should be")
        self.numbers.append(_small(Fraction(token.replace(",", ""))))
        return self.numbers[-1]


def _raised(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1:
        raise NotComputable(f"an exponent that is no integer ({exponent})")
    if base == 0 and exponent < 0:
        raise NotComputable("a division by zero")
    # Before it is computed: 9^9^9 has 370 million digits.
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    if abs(base) != 1 and base != 0 and bits * abs(exponent) > 2 * MAX_BITS:
        raise NotComputable(f"a value of more than {MAX_BITS} bits")
    if abs(base) == 1:
        return base if exponent.numerator % 2 else Fraction(1)
    return _small(base**exponent.numerator)


def _small(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
        raise NotComputable(f"a value of more than {MAX_BITS} bits")
    return value
