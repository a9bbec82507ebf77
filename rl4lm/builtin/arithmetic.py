"""The arithmetic task `builtin:arithmetic`: problems made by rule, split by a fixed hash.

Three families, mixed 2 : 1 : 2 at any prefix (exactly at multiples of five rows):

- `addition`: `12+34=`, both operands 10..99;
- `subtraction`: `46-12=`, both operands 10..99, the result not negative;
- `three_digit`: `123+45=` and `123-45=`, the harder one, first operand 100..999.

Whether a problem is held out depends on nothing but the problem: a salted sha256 of its canonical
key, in which `12+34` and `34+12` are one, puts about a tenth of all problems into the test split.
Seeds order the rows of a split and never move a problem across. To add a family, give it a
generator in `_FAMILIES` and a place in `PATTERN`. Standard library and numpy only.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np

Split = Literal["train", "test"]

PATTERN = ("addition", "three_digit", "subtraction", "addition", "three_digit")
"""The families of five consecutive rows, repeated from the first row on."""

DEFAULT_ROWS: dict[str, int] = {"train": 20_000, "test": 2_000}
"""Rows asked for by default; fewer come where the smallest family runs out: 18,205 for train."""

_SALT = "rl4lm:builtin:arithmetic:1"
_HELD_OUT_SHARE = 0.1
_TWO_DIGIT = (10, 100)
_THREE_DIGIT = (100, 1000)


def canonical_key(prompt: str) -> str:
    """The same text for all orders of a problem's terms: `34+12=` and `12+34=` give `+12+34`."""
    terms = sorted(int(term) for term in re.findall(r"[+-]?\d+", prompt))
    return "".join(f"{term:+d}" for term in terms)


def is_held_out(prompt: str) -> bool:
    """Whether a problem belongs to the test split: fixed, whatever the seed or the size."""
    return key_is_held_out(canonical_key(prompt))


def key_is_held_out(key: str) -> bool:
    """Whether the problem of a canonical key belongs to the test split."""
    digest = hashlib.sha256(f"{_SALT}|{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < _HELD_OUT_SHARE * 2**64


def has_carry(a: int, b: int, sign: str) -> bool:
    """Whether any column of `a + b` carries, or any column of `a - b` borrows."""
    carry = 0
    while a or b:
        column = a % 10 + b % 10 + carry if sign == "+" else a % 10 - b % 10 - carry
        carry = int(not 0 <= column <= 9)
        if carry:
            return True
        a, b = a // 10, b // 10
    return False


def _shuffled_pairs(
    first: tuple[int, int], second: tuple[int, int], rng: np.random.Generator
) -> Iterator[tuple[int, int]]:
    """Every pair of operands of two half-open ranges once, in a random order."""
    width = second[1] - second[0]
    for index in rng.permutation((first[1] - first[0]) * width).tolist():
        yield first[0] + index // width, second[0] + index % width


def _addition(rng: np.random.Generator) -> Iterator[tuple[int, int, str]]:
    return ((a, b, "+") for a, b in _shuffled_pairs(_TWO_DIGIT, _TWO_DIGIT, rng))


def _subtraction(rng: np.random.Generator) -> Iterator[tuple[int, int, str]]:
    return ((a, b, "-") for a, b in _shuffled_pairs(_TWO_DIGIT, _TWO_DIGIT, rng) if a >= b)


def _three_digit(rng: np.random.Generator) -> Iterator[tuple[int, int, str]]:
    """Sums and differences by turns, so that a prefix holds as many of the one as of the other."""
    plus = _shuffled_pairs(_THREE_DIGIT, _TWO_DIGIT, rng)
    minus = _shuffled_pairs(_THREE_DIGIT, _TWO_DIGIT, rng)
    for (a, b), (c, d) in zip(plus, minus, strict=True):
        yield a, b, "+"
        yield c, d, "-"


_FAMILIES: dict[str, Callable[[np.random.Generator], Iterator[tuple[int, int, str]]]] = {
    "addition": _addition,
    "subtraction": _subtraction,
    "three_digit": _three_digit,
}


def _row(family: str, a: int, b: int, sign: str) -> dict[str, Any]:
    return {
        "prompt": f"{a}{sign}{b}=",
        "answer": str(a + b if sign == "+" else a - b),
        "family": family,
        "carry": has_carry(a, b, sign),
    }


def _family_rows(family: str, split: Split, wanted: int, seed: int) -> list[dict[str, Any]]:
    """Up to `wanted` rows of one family; a commuted twin comes only after all problems had a row.

    So a prefix of the test split asks no problem twice, while in all there are as many rows as
    there are ways to write the problems.
    """
    # Philox is counter-based: the families draw from streams of their own under one seed.
    rng = np.random.Generator(np.random.Philox(key=[seed, list(_FAMILIES).index(family)]))
    fresh: list[dict[str, Any]] = []
    twins: list[dict[str, Any]] = []
    seen: set[str] = set()
    for a, b, sign in _FAMILIES[family](rng):
        row = _row(family, a, b, sign)
        if is_held_out(row["prompt"]) != (split == "test"):
            continue
        key = canonical_key(row["prompt"])
        (twins if key in seen else fresh).append(row)
        seen.add(key)
        if len(fresh) == wanted:
            break
    return (fresh + twins)[:wanted]


def arithmetic_rows(split: Split, size: int | None = None, seed: int = 0) -> list[dict[str, Any]]:
    """The rows of a split: `{"prompt": "12+34=", "answer": "46", "family": ..., "carry": ...}`.

    Args:
        split: "train" or "test"; no problem is in both, in any order of its terms.
        size: the most rows wanted; None for the default. No row is repeated, so there are fewer
            where a family runs out: the proportion of the families holds at any prefix.
        seed: orders the rows (and picks those of the three-digit family); at least 0.

    Returns:
        Rows whose families follow `PATTERN`, in an order that the arguments fix.

    Raises:
        ValueError: for another split, or a size or a seed below zero.
    """
    if split not in DEFAULT_ROWS:
        raise ValueError(f"split is {split!r}; builtin:arithmetic has 'train' and 'test'")
    size = DEFAULT_ROWS[split] if size is None else size
    if size < 0 or seed < 0:
        raise ValueError(f"size is {size} and seed is {seed}; both must be at least 0")
    cycles = -(-size // len(PATTERN))
    per_family = {
        family: _family_rows(family, split, cycles * PATTERN.count(family), seed)
        for family in _FAMILIES
    }
    cycles = min(len(rows) // PATTERN.count(family) for family, rows in per_family.items())
    streams = {family: iter(rows) for family, rows in per_family.items()}
    return [next(streams[family]) for _ in range(cycles) for family in PATTERN][:size]
