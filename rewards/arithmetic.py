r"""Rewards for answers that are one number, compared as exact fractions.

`exact_answer` wants the number and nothing else. `final_number` finds the number that a longer
answer ends with. Neither uses `eval` or floats, both take time linear in the length of the text,
and both are fixed by two readers of `rewards.reading`: `read_number` (the text is a number) and
`last_number` (the text contains one). `docs/rewards.md` has a table of the forms.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from numbers import Rational, Real

from rewards.adapters import Graded, per_sample
from rewards.reading import last_number, only_number, read_number, reference_number

__all__ = ["exact_answer", "final_number", "graded", "last_number", "read_number"]


@per_sample
def exact_answer(completion: str, answer: object) -> Graded:
    """1.0 if the completion is a number equal to `answer`, else 0.0.

    Around the number only white space is allowed; `read_number` says what a number is. `answer` is
    a text that `read_number` reads, or an int, float, Decimal or Fraction; floats count as
    printed, so 0.1 is one tenth. Where `answer` is `None` the reward does not apply (`None`).

    Raises:
        ValueError: if `answer` is not a number.
    """
    return graded(completion, answer, read_number, read_number)


@per_sample
def final_number(completion: str, answer: object) -> Graded:
    r"""1.0 if the number that the completion ends with equals `answer`, else 0.0.

    `last_number` says which number that is. `answer` is an int, float, Decimal, Fraction or a text
    that holds one number, or one number behind its last `####` or in its last `\boxed{}`; so the
    worked solutions of GSM8K can be given as they are. Where `answer` is `None` the reward does
    not apply (`None`).

    Raises:
        ValueError: if `answer` is not a number, or a text that leaves open which number is meant.
    """
    return graded(completion, answer, last_number, reference_number)


def graded(
    completion: str,
    answer: object,
    read: Callable[[str], Fraction | None],
    read_reference: Callable[[str], Fraction | None],
) -> Graded:
    """1.0 if what is read from the completion equals the answer, else 0.0, with the reason.

    Raises:
        ValueError: if `answer` is not a number.
    """
    if answer is None:
        return Graded(None, "answer is None: does not apply")
    expected = _expected(answer, read_reference)
    found = read(completion)
    seen = "no number" if found is None else shown(found)
    return Graded(float(found == expected), f"read {seen}, expected {shown(expected)}")


def _expected(answer: object, read_reference: Callable[[str], Fraction | None]) -> Fraction:
    value = None
    if isinstance(answer, str):
        value = read_reference(answer)
    elif isinstance(answer, bool):  # True is the integer 1 to Python; as an answer it is a mistake
        value = None
    elif isinstance(answer, Rational):
        value = Fraction(int(answer.numerator), int(answer.denominator))
    elif isinstance(answer, (Real, Decimal)):
        value = only_number(str(answer))
    if value is None:
        raise ValueError(
            f"answer {answer!r:.80} is not one number; expected an int, a float, a Fraction or a "
            "text such as '46' or '3/4'. Correct the row, or set its answer to None to skip it"
        )
    return value


def shown(value: Fraction) -> str:
    """The number as people read it in a reason."""
    # Printing a very long integer raises, and reading it helps nobody.
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > 128:
        return "a very long number"
    return str(value)
