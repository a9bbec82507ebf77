r"""Rewards for answers that are formulas, by symbolic equivalence. Needs the extra `math`.

    boxed_math   the formula in `\boxed{...}` is equivalent to the row's `answer`

`math-verify` reads the LaTeX and compares with `sympy`, which can take for ever (`9^{9^{9}}`). Its
own time limits rest on `signal.alarm` and stay off. A reward given by name runs in a worker that is
killed after `reward_timeout_s`; handed over in Python, it has no limit.
"""

from __future__ import annotations

import logging
from itertools import islice
from typing import Any

from rewards.adapters import Graded, per_sample
from rewards.reading import marks, only_number

MAX_CHARACTERS = 500  # of a formula
_MOST_BOXES = 20


@per_sample
def boxed_math(completion: str, answer: str | float | None) -> Graded:
    r"""1.0 if the formula in the completion's `\boxed{...}` is equivalent to `answer`, else 0.0.

    `answer` is LaTeX, or a text with its result in `\boxed{}`, or a number; where it is `None` the
    reward does not apply (`None`). Where the completion has a `</think>`, what is behind the last
    one counts. A box must be there; several must hold the same text.

    Where `answer` is a number, the box must hold that number and nothing is computed for it: `2+1`
    is not 3. Otherwise formulas are equivalent as `math-verify` has it: `\frac{1}{\sqrt{2}}` and
    `\frac{\sqrt{2}}{2}` are.

    Gamed by handing the problem back where it is a formula to be transformed: `(x+1)^2` is
    equivalent to its expansion. Source: `math-verify`, also behind TRL's `accuracy_reward`.

    Raises:
        ImportError: the extra `math` is not installed.
        ValueError: if `answer` cannot be read.
    """
    if answer is None:
        return Graded(None, "answer is None: does not apply")
    gold = _only_box(str(answer)) or str(answer)
    said = _only_box(completion.rpartition("</think>")[2])
    if said is None:
        return Graded(0.0, "no box, or several that differ")
    number = only_number(gold) if _is_plain(gold) else None
    right = only_number(said) == number if number is not None else _equivalent(gold, said)
    return Graded(float(right), f"read {said!r:.60}, expected {gold!r:.60}")


def _only_box(text: str) -> str | None:
    places = list(islice(marks(text, hashes=False), _MOST_BOXES + 1))
    boxed = {"".join(text[start:end].split()): text[start:end] for start, end in places}
    if len(boxed) != 1 or len(places) > _MOST_BOXES:
        return None
    found = next(iter(boxed.values()))
    return found if found.strip() and len(found) <= MAX_CHARACTERS else None


def _is_plain(formula: str) -> bool:
    """Whether there is nothing but a number: no name, bracket or sign that makes it more."""
    bare = formula.replace("\\$", "").replace("\\%", "").replace("{,}", ",").strip(" $%")
    for command in ("\\dfrac", "\\tfrac", "\\frac"):
        bare = bare.replace(command, "")
    return all(character in "0123456789.,/-{}\u2212 " for character in bare)


def _equivalent(gold: str, said: str) -> bool:
    math_verify = _library()
    expected = math_verify.parse(f"\\boxed{{{gold}}}", parsing_timeout=None)
    if not expected:
        raise ValueError(
            f"answer {gold!r:.80} cannot be read as a formula; expected LaTeX such as "
            "'\\frac{1}{2}'. Correct the row, or set its answer to None to skip it"
        )
    found = math_verify.parse(f"\\boxed{{{said}}}", parsing_timeout=None)
    return bool(math_verify.verify(expected, found, timeout_seconds=None))


def _library() -> Any:
    try:
        import math_verify
    except ImportError:
        raise ImportError(
            "rewards.symbolic needs the library math-verify, which is not installed; "
            "install it by: pip install 'rl4lm[math]'"
        ) from None
    # It warns at every call that its time limits are off, as they are meant to be.
    for name in ("math_verify.parser", "math_verify.grader"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return math_verify
