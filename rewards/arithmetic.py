r"""Rewards for answers that are one number, compared as exact fractions.

`exact_answer` wants the number and nothing else. `final_number` finds the number that a longer
answer ends with. Neither uses `eval` or floats, both take time linear in the length of the text,
and both are fixed by two readers: `read_number` (the text is a number) and `last_number` (the text
contains one). `docs/rewards.md` has a table of the forms.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from itertools import islice
from numbers import Rational, Real

from rewards.adapters import Graded, per_sample

# Longer numbers are not read: Python refuses to convert integers of more than 4300 digits, and
# nobody asks for them.
MAX_CHARACTERS = 300

# [0-9] and not \d, which matches the digits of every script.
_INTEGER = r"(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+|[0-9]+)"
_PLAIN = re.compile(rf"[-+]?(?:{_INTEGER}/{_INTEGER}|{_INTEGER}(?:\.[0-9]+)?|\.[0-9]+)")
# In running text also 1.5e3. The exponent is bounded: 1e1000000000 would fill the memory.
_WRITTEN = re.compile(
    rf"{_INTEGER}/{_INTEGER}|(?:{_INTEGER}(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][-+]?[0-9]{{1,3}})?"
)

# Cuts a text into words, exponents and whatever starts with a digit. Every alternative consumes
# what it looked at and none can fail late, so a scan is linear in the length of the text.
_TOKEN = re.compile(
    r"""
      [A-Za-z][A-Za-z0-9_]*(?:(?<=[0-9])[.,:/][0-9]\w*)*    # x1, H2O, v1.5: digits of a name
    | \^[-+]?\w*                                            # the 2 of m^2
    | (?P<sign>(?<![^\W_])(?<![)\]}%-])[-+±])?             # in 5-4 and (a)-4 a minus is no sign
      [$€£¥₹]?
      (?P<whole>[0-9]{1,9}[ ](?=[0-9]{1,9}/[0-9]))?         # the 2 of 2 3/4
      (?P<body>(?:(?<![\w.])\.)?\d(?:[eE][-+]\d|[\w.,/:]|\^[-+]?)*)
    """,
    re.VERBOSE,
)

_LATEX = (
    ("\u2212", "-"),  # the minus sign of Unicode
    ("\\$", "$"),
    ("{,}", ","),
    ("\\!", ""),
    ("_{", "_"),
    ("^{", "^"),
    ("^\\circ", "°"),
    ("\\pm ", "±"),
    ("\\pm", "±"),
)
_AFTER_DIGIT = re.compile(r"(?<=[0-9])(?=\\[dt]?frac\b)")
_FRACTION = re.compile(r"\\[dt]?frac\s*\{\s*(-?[0-9,]{1,150})\s*\}\s*\{\s*([0-9,]{1,150})\s*\}")

_BOX = re.compile(r"\\boxed\s*\{")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
# A heading such as "#### Step 3" is no answer: the number must come first.
_HASHES = re.compile(r"(?<!#)#{4,}(?=[^\w\n]{0,12}(?:\d|(?<=\\)[dt]?frac\b))")


@per_sample
def exact_answer(completion: str, answer: object) -> Graded:
    """1.0 if the completion is a number equal to `answer`, else 0.0.

    Around the number only white space is allowed; `read_number` says what a number is. `answer` is
    a text that `read_number` reads, or an int, float, Decimal or Fraction; floats count as
    printed, so 0.1 is one tenth. Where `answer` is `None` the reward does not apply (`None`).

    Raises:
        ValueError: if `answer` is not a number.
    """
    return _graded(completion, answer, read_number, read_number)


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
    return _graded(completion, answer, last_number, _reference_number)


def read_number(text: str) -> Fraction | None:
    """The number that the text is, or `None` if it is anything else.

    An integer (`46`, `1,000`), a decimal (`46.0`, `.5`) or a fraction of integers (`3/4`), with an
    optional sign (`+`, `-` or the minus sign of Unicode), and white space around it. Leading zeros
    are allowed, thousands commas must be complete. Not numbers: `46.`, `1e3`, `50%`, `$5`, `4 6`,
    `1_000`, `0x2e`, `nan`, digits of other scripts, a denominator of zero, and texts of more than
    `MAX_CHARACTERS` characters.
    """
    stripped = text.strip()
    if len(stripped) > MAX_CHARACTERS:
        return None
    plain = stripped.replace("\u2212", "-")
    return _value(plain) if _PLAIN.fullmatch(plain) else None


def last_number(text: str) -> Fraction | None:
    r"""The number that a longer answer gives as its result, or `None` if there is none to read.

    If the text has a marker, the last marker decides, and what it marks must hold exactly one
    number: the braces of `\boxed{...}`, or the rest of the line after `####` where a number comes
    first. Without a marker it is the last number of the text. If that cannot be read (`1,00`,
    `12:30`, `10^3`, `1_000`, `±4`) the result is `None`, not an earlier number.

    Besides the forms of `read_number`: `\frac{3}{4}`, `2 3/4`, `1.5e3` (exponents up to three
    digits), currency signs before the number, punctuation and units after it. A percent sign is a
    unit: `50%` is 50. Digits that belong to a name (`x1`, `H2O`) or to a unit's exponent (`m^2`)
    are no numbers. A sign touches its number.
    """
    marked = _marked(text)
    if marked is not None:
        return _only_number(marked)
    last = deque(_tokens(text), maxlen=1)
    return _token_value(last[0]) if last else None


def _graded(
    completion: str,
    answer: object,
    read: Callable[[str], Fraction | None],
    read_reference: Callable[[str], Fraction | None],
) -> Graded:
    if answer is None:
        return Graded(None, "answer is None: does not apply")
    expected = _expected(answer, read_reference)
    found = read(completion)
    seen = "no number" if found is None else _shown(found)
    return Graded(float(found == expected), f"read {seen}, expected {_shown(expected)}")


def _expected(answer: object, read_reference: Callable[[str], Fraction | None]) -> Fraction:
    value = None
    if isinstance(answer, str):
        value = read_reference(answer)
    elif isinstance(answer, bool):  # True is the integer 1 to Python; as an answer it is a mistake
        value = None
    elif isinstance(answer, Rational):
        value = Fraction(int(answer.numerator), int(answer.denominator))
    elif isinstance(answer, (Real, Decimal)):
        value = _only_number(str(answer))
    if value is None:
        raise ValueError(
            f"answer {answer!r:.80} is not one number; expected an int, a float, a Fraction or a "
            "text such as '46' or '3/4'. Correct the row, or set its answer to None to skip it"
        )
    return value


def _reference_number(text: str) -> Fraction | None:
    marked = _marked(text)
    return _only_number(text if marked is None else marked)


def _marked(text: str) -> str | None:
    """What the last marker marks; empty if its brace is never closed; `None` without a marker."""
    boxes = deque(_BOX.finditer(text), maxlen=1)
    hashes = deque(_HASHES.finditer(text), maxlen=1)
    if boxes and not (hashes and hashes[0].start() > boxes[0].start()):
        return _braced(text, boxes[0].end())
    if hashes:
        return text[hashes[0].end() :].split("\n", 1)[0]
    return None


def _braced(text: str, start: int) -> str:
    depth = 1
    for brace in _BRACE.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return text[start : brace.start()]
    return ""


def _tokens(text: str) -> Iterator[re.Match[str]]:
    """Whatever looks like a number, in order, readable or not."""
    for spelled, plain in _LATEX:
        text = text.replace(spelled, plain)
    text = _FRACTION.sub(r"\1/\2", _AFTER_DIGIT.sub(" ", text))
    return (token for token in _TOKEN.finditer(text) if token["body"])


def _only_number(text: str) -> Fraction | None:
    first_two = list(islice(_tokens(text), 2))
    return _token_value(first_two[0]) if len(first_two) == 1 else None


def _token_value(token: re.Match[str]) -> Fraction | None:
    body = token["body"].rstrip(".,:/_")
    number = _WRITTEN.match(body) if len(body) <= MAX_CHARACTERS else None
    if number is None or token["sign"] == "±":
        return None
    unit = body[number.end() :]
    if unit and not unit.lstrip(".,:/")[:1].isalpha():
        return None
    if any(character.isdecimal() for character in unit):
        return None
    value = _value(number[0])
    if value is None:
        return None
    value += int(token["whole"] or 0)
    return -value if token["sign"] == "-" else value


def _value(number: str) -> Fraction | None:
    try:
        return Fraction(number.replace(",", ""))
    except ZeroDivisionError:
        return None


def _shown(value: Fraction) -> str:
    # Printing a very long integer raises, and reading it helps nobody.
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > 128:
        return "a very long number"
    return str(value)
