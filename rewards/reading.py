r"""Numbers in texts, read as exact fractions.

`read_number` reads a text that is a number, `last_number` finds the one that a longer text ends
with; the rest is what they and stricter readers are made of. No `eval`, no floats, and time linear
in the length of the text. `docs/rewards.md` has a table of the forms.
"""

from __future__ import annotations

import re
import unicodedata
from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from itertools import islice

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
_VULGAR = re.compile(r"([0-9])?[ ]?([¼½¾⅐-⅞])")
# "1.5 million", "5k"; M and B are units (metre, byte) unless they count money.
_SCALE = re.compile(r"[ \u00a0-]?(thousand|million|billion|trillion)s?\b", re.IGNORECASE)
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "k": 10**3}
_MONEY = {"m": 10**6, "mn": 10**6, "b": 10**9, "bn": 10**9}
# What a reader does not see, or sees crossed out.
_HIDDEN = re.compile(r"<!--.*?(?:-->|\Z)|~~[^~\n]{1,200}~~", re.DOTALL)
_AFTER_DIGIT = re.compile(r"(?<=[0-9])(?=\\[dt]?frac\b)")
_FRACTION = re.compile(r"\\[dt]?frac\s*\{\s*(-?[0-9,]{1,150})\s*\}\s*\{\s*([0-9,]{1,150})\s*\}")

_BOX = re.compile(r"\\boxed\s*\{")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
# Headings such as "#### Step 3" and "#### 2. Eggs a day" are no answers: the number must come first
# and must not count what follows.
_HASHES = re.compile(
    r"(?<!#)#{4,}(?=[^\w\n]{0,12}(?:\d|(?<=\\)[dt]?frac\b))"
    r"(?![^\w\n]{0,12}[0-9]{1,2}[.):][ *_]{1,4}[A-Za-z])"
)


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
    are no numbers. A sign touches its number. `½` is 1/2, `1.5 million` 1500000 and `5k` 5000.
    What is in `<!-- -->` or crossed out (`~~`) does not count.
    """
    text = shown_text(text)
    marked = _marked(text)
    if marked is not None:
        return only_number(marked)
    last = deque(number_tokens(text), maxlen=1)
    return token_value(last[0]) if last else None


def reference_number(text: str) -> Fraction | None:
    """The number of a reference answer: the one behind its marker, or else the only one in it."""
    marked = _marked(text)
    return only_number(text if marked is None else marked)


def shown_text(text: str) -> str:
    """A text without what a reader of it would not see: comments, and what is crossed out."""
    return _HIDDEN.sub(" ", text)


def marks(text: str, hashes: bool = True) -> Iterator[tuple[int, int]]:
    r"""Start and end of what each marker marks: every `\boxed{...}`, then every `####`.

    Without `hashes` the boxes only.

    Nested boxes take time in proportion to their number: take only as many as are needed.
    """
    for box in _BOX.finditer(text):
        yield box.end(), box.end() + len(_braced(text, box.end()))
    for sign in _HASHES.finditer(text) if hashes else ():
        line_end = text.find("\n", sign.end())
        yield sign.end(), len(text) if line_end < 0 else line_end


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


def number_tokens(text: str) -> Iterator[re.Match[str]]:
    """Whatever looks like a number, in order, readable or not, where LaTeX is spelled plainly."""
    for spelled, plain in _LATEX:
        text = text.replace(spelled, plain)
    text = _FRACTION.sub(r"\1/\2", _AFTER_DIGIT.sub(" ", text))
    text = _VULGAR.sub(_written_out, text)
    return (token for token in _TOKEN.finditer(text) if token["body"])


def only_number(text: str) -> Fraction | None:
    """The number of a text that holds exactly one; `None` also if that cannot be read."""
    first_two = list(islice(number_tokens(text), 2))
    return token_value(first_two[0]) if len(first_two) == 1 else None


def token_value(token: re.Match[str]) -> Fraction | None:
    """What a match of `number_tokens` is worth; `None` if it cannot be read."""
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
    value = (value + int(token["whole"] or 0)) * _scale(token, unit)
    return -value if token["sign"] == "-" else value


def _written_out(vulgar: re.Match[str]) -> str:
    whole = f"{vulgar[1]} " if vulgar[1] else ""
    return whole + unicodedata.normalize("NFKC", vulgar[2]).replace("\u2044", "/")


def _scale(token: re.Match[str], unit: str) -> int:
    """What a number is multiplied with by the word or letter behind it."""
    word = _SCALE.match(unit or token.string[token.end() : token.end() + 20])
    name = word[1].lower() if word else unit.lower()
    money = _MONEY if token[0].lstrip("+-")[:1] in "$€£¥₹" else {}
    return _SCALES.get(name) or money.get(name, 1)


def _value(number: str) -> Fraction | None:
    try:
        return Fraction(number.replace(",", ""))
    except ZeroDivisionError:
        return None
