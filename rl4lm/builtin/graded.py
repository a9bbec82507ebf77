"""The task `builtin:graded-arithmetic`: arithmetic in eight levels, split by a fixed hash.

| level | problems | example |
|---|---|---|
| 1 | sums of numbers up to 99 | `7+34=` |
| 2 | a number up to 999 plus or minus one up to 99, not negative | `123-45=` |
| 3 | sums and differences of numbers up to 999, also negative | `123-456=` |
| 4 | three terms up to 99, also negative | `12-34+56=` |
| 5 | products with a digit, quotients by one that leave no rest | `12*7=`, `84/7=` |
| 6 | a product or a quotient and a third number | `3*4+56=`, `20-84/7=` |
| 7 | brackets | `(12+3)*4=`, `50-(12-7)=` |
| 8 | products of two numbers or of two brackets | `12*34=`, `(9+4)*(8-3)=` |

A level's families (its kinds of problem) take turns, as the levels do; no problem is in two of
them. `builtin:graded-arithmetic:2-4` and `builtin:graded-arithmetic:1,3` are the same rows without
the other levels. Whether a problem is held out depends on nothing but the problem, whatever the
order of its terms and factors, and is decided as in `builtin:arithmetic`: what is held out in the
one is so in the other. To add a family, give it a generator in `_FAMILIES`. Standard library and
numpy only.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from rl4lm.builtin.arithmetic import key_is_held_out

Split = Literal["train", "test"]

LEVELS = range(1, 9)
DEFAULT_ROWS: dict[str, int] = {"train": 2_000, "test": 200}
"""Rows of each level asked for by default; fewer come where a level has no more."""

_SOME = (1, 100)  # half-open, as all ranges here
_MORE = (1, 1000)
_DIGIT = (2, 10)
_TENS = (10, 100)
_SIGN = (0, 2)  # 0 is +, 1 is -
_TRIED = 12_000  # problems of a family that are looked at, at most

Problem = str  # without the sign of equality
Build = Callable[
    ..., "Problem | None"
]  # operands -> the problem, None where it is not of the level


@dataclass(frozen=True)
class Family:
    """One kind of problem: all choices of operands from some ranges."""

    level: int
    ranges: Sequence[tuple[int, int]]
    build: Build


def _sign(which: int) -> str:
    return "+-"[which]


def _sum_up_to_99(a: int, b: int) -> Problem:
    return f"{a}+{b}"


def _sum_with_99(a: int, b: int) -> Problem | None:
    return f"{a}+{b}" if a > 99 else None


def _difference_with_99(a: int, b: int) -> Problem | None:
    return f"{a}-{b}" if a >= b else None


def _sum_up_to_999(a: int, b: int) -> Problem | None:
    return f"{a}+{b}" if min(a, b) > 99 else None


def _difference_up_to_999(a: int, b: int) -> Problem | None:
    return f"{a}-{b}" if b > 99 or a < b else None


def _three_terms(a: int, b: int, c: int, first: int, second: int) -> Problem:
    return f"{a}{_sign(first)}{b}{_sign(second)}{c}"


def _product_with_a_digit(a: int, b: int, turned: int) -> Problem:
    return f"{b}*{a}" if turned else f"{a}*{b}"


def _quotient_by_a_digit(quotient: int, divisor: int) -> Problem:
    return f"{quotient * divisor}/{divisor}"


def _product_and_a_term(a: int, b: int, c: int, sign: int, turned: int) -> Problem:
    return f"{c}{_sign(sign)}{a}*{b}" if turned else f"{a}*{b}{_sign(sign)}{c}"


def _quotient_and_a_term(quotient: int, divisor: int, c: int, sign: int, turned: int) -> Problem:
    divided = f"{quotient * divisor}/{divisor}"
    return f"{c}{_sign(sign)}{divided}" if turned else f"{divided}{_sign(sign)}{c}"


def _bracket_times(a: int, b: int, c: int, sign: int, turned: int) -> Problem:
    bracket = f"({a}{_sign(sign)}{b})"
    return f"{c}*{bracket}" if turned else f"{bracket}*{c}"


def _minus_a_bracket(a: int, b: int, c: int, sign: int) -> Problem:
    return f"{a}-({b}{_sign(sign)}{c})"


def _product_of_two_digits(a: int, b: int) -> Problem:
    return f"{a}*{b}"


def _product_of_brackets(a: int, b: int, c: int, d: int, first: int, second: int) -> Problem:
    return f"({a}{_sign(first)}{b})*({c}{_sign(second)}{d})"


_FAMILIES: dict[str, Family] = {
    "sum": Family(1, (_SOME, _SOME), _sum_up_to_99),
    "sum_with_99": Family(2, (_MORE, _SOME), _sum_with_99),
    "difference_with_99": Family(2, (_MORE, _SOME), _difference_with_99),
    "sum_up_to_999": Family(3, (_MORE, _MORE), _sum_up_to_999),
    "difference_up_to_999": Family(3, (_MORE, _MORE), _difference_up_to_999),
    "three_terms": Family(4, (_SOME, _SOME, _SOME, _SIGN, _SIGN), _three_terms),
    "product": Family(5, (_SOME, _DIGIT, _SIGN), _product_with_a_digit),
    "quotient": Family(5, (_SOME, _DIGIT), _quotient_by_a_digit),
    "product_and_term": Family(6, (_DIGIT, _DIGIT, _SOME, _SIGN, _SIGN), _product_and_a_term),
    "quotient_and_term": Family(6, (_SOME, _DIGIT, _SOME, _SIGN, _SIGN), _quotient_and_a_term),
    "bracket_times": Family(7, (_SOME, _DIGIT, _DIGIT, _SIGN, _SIGN), _bracket_times),
    "minus_bracket": Family(7, (_SOME, _SOME, _SOME, _SIGN), _minus_a_bracket),
    "product_of_two": Family(8, (_TENS, _TENS), _product_of_two_digits),
    "product_of_brackets": Family(8, (_DIGIT,) * 4 + (_SIGN,) * 2, _product_of_brackets),
}


def canonical_key(problem: str) -> str:
    """The same text for all orders of a problem's terms and factors; brackets stay brackets.

    Of plain sums it is the key of `builtin:arithmetic`: `34+12` and `12+34` give `+12+34`.
    """
    bracketless = re.sub(r"\(([^()]*)\)", lambda inner: f"<{canonical_key(inner[1])}>", problem)
    # A sign within a bracket belongs to the bracket's key.
    terms = re.findall(r"([+-]?)((?:<[^<>]*>|[^+<>-])+)", bracketless)
    numbers = sorted(int(sign + term) for sign, term in terms if term.isdecimal())
    others = sorted(
        (sign or "+") + _key_of_term(term) for sign, term in terms if not term.isdecimal()
    )
    return "".join([*(f"{number:+d}" for number in numbers), *others])


def _key_of_term(term: str) -> str:
    """Factors in order; a quotient has an order of its own."""
    return term if "/" in term else "*".join(sorted(term.split("*")))


def is_held_out(problem: str) -> bool:
    """Whether a problem belongs to the test split: fixed, whatever the seed or the size."""
    return key_is_held_out(canonical_key(problem))


def solve(problem: str) -> int:
    """The value of a problem of this file, whose quotients leave no rest."""
    while (bracket := re.search(r"\(([^()]*)\)", problem)) is not None:
        problem = f"{problem[: bracket.start()]}{solve(bracket[1])}{problem[bracket.end() :]}"
    # The value of a bracket may be negative, and stand behind a sign.
    terms = re.findall(r"([+-]?)(-?\d+(?:[*/]-?\d+)*)", problem)
    return sum((-1 if sign == "-" else 1) * _value_of_term(term) for sign, term in terms)


def _value_of_term(term: str) -> int:
    first, *rest = re.findall(r"[*/]?-?\d+", term)
    value = int(first)
    for factor in rest:
        number = int(factor[1:])
        value = value * number if factor[0] == "*" else value // number
    return value


def _problems(family: str, split: Split, seed: int) -> Iterator[tuple[str, Problem]]:
    """A family's problems in random order, none twice in any order of its terms and factors."""
    kind = _FAMILIES[family]
    # Philox is counter-based: the families draw from streams of their own under one seed.
    rng = np.random.Generator(np.random.Philox(key=[seed, list(_FAMILIES).index(family)]))
    sizes = [high - low for low, high in kind.ranges]
    total = int(np.prod(sizes))
    chosen = rng.choice(total, size=min(total, _TRIED), replace=False)
    lows = [low for low, _ in kind.ranges]
    seen: set[str] = set()
    for place in np.stack(np.unravel_index(chosen, sizes), axis=1).tolist():
        problem = kind.build(*(low + k for low, k in zip(lows, place, strict=True)))
        if problem is None or (key := canonical_key(problem)) in seen:
            continue
        seen.add(key)
        if key_is_held_out(key) == (split == "test"):
            yield family, problem


def _level_rows(level: int, split: Split, wanted: int, seed: int) -> Iterator[dict[str, Any]]:
    """Up to `wanted` rows of one level; its families take turns."""
    families = [name for name, family in _FAMILIES.items() if family.level == level]
    turns = _by_turns([_problems(family, split, seed) for family in families])
    for family, problem in itertools.islice(turns, wanted):
        answer = str(solve(problem))
        yield {"prompt": f"{problem}=", "answer": answer, "level": level, "family": family}


def _by_turns(streams: Sequence[Iterator[Any]]) -> Iterator[Any]:
    """One of each stream, again and again; a stream that has run out is passed over."""
    for row in itertools.zip_longest(*streams):
        yield from (item for item in row if item is not None)


def graded_rows(
    split: Split, size: int | None = None, seed: int = 0, levels: Sequence[int] = LEVELS
) -> list[dict[str, Any]]:
    """The rows of a split: `{"prompt": "12+34=", "answer": "46", "level": 1, "family": "sum"}`.

    Args:
        split: "train" or "test"; no problem is in both, in any order of its terms and factors.
        size: the most rows wanted of each level; None for the default.
        seed: orders the rows and picks those of large families; at least 0.
        levels: which ones, of `LEVELS`.

    Returns:
        Rows whose levels take turns, in an order that the arguments fix.

    Raises:
        ValueError: for another split or level, or a size or a seed below zero.
    """
    if split not in DEFAULT_ROWS:
        raise ValueError(f"split is {split!r}; builtin:graded-arithmetic has 'train' and 'test'")
    size = DEFAULT_ROWS[split] if size is None else size
    if size < 0 or seed < 0:
        raise ValueError(f"size is {size} and seed is {seed}; both must be at least 0")
    if not set(levels) <= set(LEVELS):
        raise ValueError(f"levels are {list(levels)}; there are 1 to {LEVELS[-1]}")
    return list(_by_turns([_level_rows(level, split, size, seed) for level in sorted(set(levels))]))
