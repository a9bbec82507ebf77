r"""Formulas read and compared by `math-verify`; may take for ever, so it runs in a `Killable`.

Its own time limits rest on `signal.alarm`, which cannot end what hangs in C code, and stay off.
"""

from __future__ import annotations

import logging
import re
from functools import lru_cache
from typing import Any

import math_verify

# It warns at every call that its time limits are off, as they are meant to be.
for _name in ("math_verify.parser", "math_verify.grader"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)

_EQUALS = re.compile(r"(?<![\\<>!])=")
# What a result may be called: x, f(x), a_{10}, \angle ABC, \text{area}
_NAME = re.compile(
    r"(?:\\[a-z]+\s?)?\{?[A-Za-z ]{1,30}\}?(?:_\{?\w{1,9}\}?)?(?:\([A-Za-z, ]{1,9}\))?"
)


def warm_up() -> None:
    """Have everything imported that is imported late: the first comparison takes seconds."""
    equivalent("\\frac{1}{\\sqrt{2}}", "\\frac{\\sqrt{2}}{2}")
    equivalent("x^2+2x+1", "(x+1)^2")
    equivalent("\\{1, 2\\}", "\\{2, 1\\}")


def readable(formula: str) -> bool:
    """Whether a formula can be read at all."""
    return bool(_read(formula))


def equivalent(gold: str, said: str) -> bool:
    """Whether two formulas are equivalent, and so is each side of what is said to be equal."""
    sides = _sides(said) if _EQUALS.search(gold) is None else [said]
    return all(_same(_read(gold), _read(side)) for side in sides)


def _same(gold: list[Any], said: list[Any]) -> bool:
    # By default six decimal places would do: 1.414214 is not the square root of 2.
    found = math_verify.verify(
        gold, said, float_rounding=10, numeric_precision=30, timeout_seconds=None
    )
    return bool(found)


def _sides(said: str) -> list[str]:
    """The sides of `3 = \\sqrt{9}`, of which the library looks at the last; without a mere name."""
    sides = [said] if re.search("[,;]", said) else _EQUALS.split(said)
    named = len(sides) > 1 and _NAME.fullmatch(sides[0].strip())
    return sides[1:] if named else sides


@lru_cache(maxsize=256)  # a reference answer comes once for each completion of its prompt
def _read(formula: str) -> list[Any]:
    return math_verify.parse(f"\\boxed{{{formula}}}", parsing_timeout=None)
