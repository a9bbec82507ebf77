r"""Formulas read and compared by `math-verify`; may take for ever, so it runs in a `Killable`.

Its own time limits rest on `signal.alarm`, which cannot end what hangs in C code, and stay off.
"""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import Any

import math_verify

# It warns at every call that its time limits are off, as they are meant to be.
for _name in ("math_verify.parser", "math_verify.grader"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)


def warm_up() -> None:
    """Have everything imported that is imported late: the first comparison takes seconds."""
    equivalent("\\frac{1}{\\sqrt{2}}", "\\frac{\\sqrt{2}}{2}")
    equivalent("x^2+2x+1", "(x+1)^2")
    equivalent("\\{1, 2\\}", "\\{2, 1\\}")


def readable(formula: str) -> bool:
    """Whether a formula can be read at all."""
    return bool(_read(formula))


def equivalent(gold: str, said: str) -> bool:
    """Whether two formulas are equivalent."""
    return bool(math_verify.verify(_read(gold), _read(said), timeout_seconds=None))


@lru_cache(maxsize=256)  # a reference answer comes once for each completion of its prompt
def _read(formula: str) -> list[Any]:
    return math_verify.parse(f"\\boxed{{{formula}}}", parsing_timeout=None)
