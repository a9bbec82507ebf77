r"""Rewards for the answers of mathematical problems.

    gsm8k         worked solutions that end in one number, as those of GSM8K (`#### 1,234`)
    equal_value   an arithmetic expression with the value of the row's `answer`
    countdown     an expression that makes `target` of `numbers`

`final_answer` is the reader behind it: which number a solution declares as its result, if it
declares one.
"""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Sequence
from fractions import Fraction
from itertools import islice

from rewards.adapters import Graded, per_sample
from rewards.arithmetic import graded, shown
from rewards.expressions import NotComputable, compute
from rewards.reading import (
    marks,
    number_tokens,
    only_number,
    reference_number,
    shown_text,
    token_value,
)

_MOST_MARKS = 20  # who declares an answer more often does something else
_ANSWER = re.compile(r"<answer>([^<]*)</answer>")
_LOOK_BACK = 60  # characters before the last number that tell what it is

# The last number is the operand of something, or denied: "9 x 18", "sqrt(18)", "not 18".
_OPERAND = re.compile(
    r"""(?:
        \d[)\]}]?[ \t]*(?:[-+*/×÷·^]|\*\*|\\times|\\cdot|\\div|[xX])[ \t]*[(\[{]?
      | (?:√|\\sqrt|\bsqrt|\blog|\\log|\\ln)[ \t]*[(\[{]?
      | (?:\b(?:can)?not|n['’]t|\bnever|\b(?:all|anything|everything)\ but|≠|!=|\\neq?)
        (?:\s+(?:be|equal|to|the|exactly|answer))*\s*
    )$""",
    re.VERBOSE | re.IGNORECASE,
)
# What stands between two guesses: "17, 18", "17 or 18", "17 dollars or maybe 18", "a) 17 b) 18",
# "<answer>17</answer><answer>18</answer>".
_MARK = r"""(?:[ \t,;|/&()?\[\]"']|</?\w{1,20}>|\b[a-h]\))"""
_OR = r"(?:or|and|maybe|perhaps|possibly|either|else|even|alternatively|it\ is|is\ it)"
_BETWEEN_GUESSES = re.compile(
    rf"""  {_MARK}*(?:{_OR}[ \t,;|/&()?]*)*
      |    [^.\n=\d]{{0,30}}\bor\b[ \t,(]*(?:{_OR}[ \t,(]*)*
      |    [ \t]*\n[\s*•>-]*
    """,
    re.VERBOSE | re.IGNORECASE,
)
_BARE_BEFORE = re.compile(r"(?:^|\n)[ \t*•>-]*$")


@per_sample
def gsm8k(completion: str, answer: object) -> Graded:
    r"""1.0 if the solution's declared result equals the row's, else 0.0.

    `answer` is a worked solution of GSM8K with its number behind `####`, or a number. Where it is
    `None` the reward does not apply (`None`). `final_answer` says which number of the completion
    counts; numbers are exact, so 18, 18.00, $18 and 36/2 are equal.

    Gamed by saying many numbers, of which one may be right. So all that is declared must agree,
    nothing else may follow, and a list, an operand (`9 x 18`) or a denial (`not 18`) is no result.
    How the number was come by is not looked at. Source: the data and their grading,
    arXiv:2110.14168.

    Raises:
        ValueError: if `answer` is not a number, or leaves open which one is meant.
    """
    return graded(completion, answer, final_answer, reference_number)


@per_sample
def equal_value(completion: str, answer: object) -> Graded:
    """1.0 if the completion is an arithmetic expression equal to `answer`, else 0.0.

    Exact: `1/3 + 1/3` is `2/3`, and 0.333 is not `1/3`. `answer` is a number or an expression;
    where it is `None` the reward does not apply (`None`). `rewards.expressions` has grammar and
    limits.

    Gamed by handing the problem back: `40+6` has the value of `40+6`. Use it where finding an
    expression is the task, and `rewards.arithmetic:exact_answer` where computing one is.

    Raises:
        ValueError: if `answer` is neither a number nor an expression.
    """
    expected = _value(answer) if isinstance(answer, str) else answer
    if expected is None and answer is not None:
        raise ValueError(
            f"answer {answer!r:.80} is no arithmetic expression; expected a number or a text such "
            "as '2*(3+4)'. Correct the row, or set its answer to None to skip it"
        )
    return graded(completion, expected, _value, reference_number)


@per_sample
def countdown(completion: str, numbers: Sequence[int], target: int) -> Graded:
    """1.0 if the completion makes `target` of all `numbers`, each used once, with + - * / and ().

    The expression is the whole completion, or what stands in its one `<answer>...</answer>`; behind
    it `= target` may be written. Source: the numbers game, as in TinyZero's Countdown.

    Gamed, where only the value is looked at, by writing the target, using a number twice, gluing
    digits (`1` and `2` to 12), powers, or several attempts; each of these scores 0.0.
    """
    inside = _ANSWER.findall(completion)
    if len(inside) > 1:
        return Graded(0.0, "several answers")
    expression, _, result = (inside[0] if inside else completion).partition("=")
    try:
        made = compute(expression)
        stated = compute(result).value if result.strip() else made.value
    except NotComputable as reason:
        return Graded(0.0, str(reason))
    if Counter(made.numbers) != Counter(map(Fraction, numbers)) or re.search(
        r"\^|\*\*", expression
    ):
        return Graded(0.0, "other numbers or signs than those given")
    right = made.value == stated == target
    return Graded(float(right), f"makes {shown(made.value)}, expected {target}")


def _value(text: str) -> Fraction | None:
    try:
        return compute(text).value
    except NotComputable:
        return None


def final_answer(text: str) -> Fraction | None:
    r"""The number that a worked solution declares as its result; `None` if it declares none.

    1. Where there is a `</think>`, what counts is behind the last one, without comments
       (`<!-- -->`) and what is crossed out (`~~`).
    2. `\boxed{...}`, and `####` with a number first on its line, declare a result: exactly one
       number each. If there are several, all must be equal.
    3. What follows the last of them may repeat that number and hold no other.
    4. Without any, the result is the last number of the text, unless it is one of a list of guesses
       (`17, 18`, `17 or 18`, lines of bare numbers), the operand of an operation, or denied.

    `rewards.reading.last_number` says how numbers are read. Compared with that function, which
    finds a number wherever there is one, this one finds a result or nothing.
    """
    visible = shown_text(text.rpartition("</think>")[2])
    declared = list(islice(marks(visible), _MOST_MARKS + 1))
    if not declared:
        return _stated_last(visible)
    if len(declared) > _MOST_MARKS:
        return None
    values = {only_number(visible[start:end]) for start, end in declared}
    after = visible[max(end for _, end in declared) :]
    values |= {token_value(token) for token in number_tokens(after)}
    return values.pop() if len(values) == 1 else None


def _stated_last(text: str) -> Fraction | None:
    last_two = deque(number_tokens(text), maxlen=2)
    if not last_two:
        return None
    last = last_two[-1]
    before = last.string[max(0, last.start() - _LOOK_BACK) : last.start()]
    if _OPERAND.search(before):
        return None
    if len(last_two) == 2 and _are_guesses(*last_two):
        return None
    return token_value(last)


def _are_guesses(one: re.Match[str], other: re.Match[str]) -> bool:
    between = other.string[one.end() : other.start()]
    value = token_value(one)
    if len(between) > _LOOK_BACK or (value is not None and value == token_value(other)):
        return False
    # The end of a sentence ("for $17. $18 is"), or what the number is about ("Step 2: 18").
    if one["body"].endswith((".", ":")) and "\n" not in between:
        return False
    if not _BETWEEN_GUESSES.fullmatch(between):
        return False
    start = one.start()
    return "\n" not in between or bool(
        _BARE_BEFORE.search(one.string[max(0, start - _LOOK_BACK) : start])
    )
