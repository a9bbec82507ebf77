"""What the little functions of `builtin:code` are asked to do: a table, family by family.

To add a kind: a line below, and bodies for it in `recipes/data/code_bodies.yaml`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Kind:
    """One thing that a function may be asked to do.

    In `comments`, several ways to say it, `{a}` and `{b}` stand for the names of the parameters,
    `{k}` for a digit and `{p}` and `{q}` for letters.
    """

    parameters: str  # types, with blanks between: number, count, list, filled, text
    comments: str  # with semicolons between
    solve: Callable[..., Any]  # takes the arguments, then k, p and q where the comments have them


ARITHMETIC = {
    "sum": Kind("number number", "sum of {a} and {b}; {a} plus {b}", lambda a, b: a + b),
    "minus": Kind("number number", "{a} minus {b}; {b} taken off {a}", lambda a, b: a - b),
    "product": Kind("number number", "product of {a} and {b}; {a} times {b}", lambda a, b: a * b),
    "distance": Kind(
        "number number", "distance of {a} and {b}; how far {a} is off {b}", lambda a, b: abs(a - b)
    ),
    "average": Kind(
        "number number", "average of {a} and {b}; mean of {a} and {b}", lambda a, b: (a + b) / 2
    ),
    "times_plus": Kind(
        "number number",
        "{k} times {a}, and {b}; {b} more than {k} times {a}",
        lambda a, b, k: k * a + b,
    ),
    "times_sum": Kind(
        "number number",
        "{k} times the sum of {a} and {b}; sum of {a} and {b}, times {k}",
        lambda a, b, k: k * (a + b),
    ),
    "remainder": Kind(
        "number", "remainder of {a} by {k}; what {a} leaves by {k}", lambda a, k: a % k
    ),
    "quotient": Kind(
        "number", "{a} by {k}, rounded down; how often {k} fits in {a}", lambda a, k: a // k
    ),
    "square_plus": Kind(
        "number", "square of {a}, plus {k}; {k} more than {a} squared", lambda a, k: a * a + k
    ),
    "taken_from": Kind("number", "{k} minus {a}; {a} taken off {k}", lambda a, k: k - a),
}

COMPARISONS = {
    "larger": Kind("number number", "larger of {a} and {b}; maximum of {a} and {b}", max),
    "smaller": Kind("number number", "smaller of {a} and {b}; minimum of {a} and {b}", min),
    "is_larger": Kind(
        "number number",
        "whether {a} is larger than {b}; is {a} above {b}?",
        lambda a, b: a > b,
    ),
    "both_positive": Kind(
        "number number",
        "whether {a} and {b} are both above 0; are {a} and {b} positive?",
        lambda a, b: a > 0 and b > 0,
    ),
    "above": Kind("number", "whether {a} is above {k}; is {a} over {k}?", lambda a, k: a > k),
    "at_most": Kind(
        "number", "whether {a} is at most {k}; is {a} not over {k}?", lambda a, k: a <= k
    ),
    "multiple": Kind(
        "number", "whether {k} divides {a}; is {a} a multiple of {k}?", lambda a, k: a % k == 0
    ),
    "odd": Kind("number", "whether {a} is odd; is {a} an odd number?", lambda a: a % 2 == 1),
    "floor": Kind("number", "{a}, but at least {k}; {k}, or {a} if that is more", max),
    "ceiling": Kind("number", "{a}, but at most {k}; {k}, or {a} if that is less", min),
    "within": Kind(
        "number",
        "whether {a} is from 0 to {k}; is {a} between 0 and {k}?",
        lambda a, k: 0 <= a <= k,
    ),
}

LISTS = {
    "total": Kind("list", "sum of {a}; all items of {a} added", sum),
    "largest": Kind("filled", "largest item of {a}; maximum of {a}", max),
    "smallest": Kind("filled", "smallest item of {a}; minimum of {a}", min),
    "length": Kind("list", "length of {a}; number of items in {a}", len),
    "backwards": Kind("list", "{a} backwards; items of {a}, last one first", lambda a: a[::-1]),
    "ascending": Kind("list", "{a} in order; items of {a}, small ones first", sorted),
    "first": Kind("list", "first {k} items of {a}; start of {a}, {k} long", lambda a, k: a[:k]),
    "without_first": Kind(
        "list", "{a} from item {k} on; {a} without the first {k}", lambda a, k: a[k:]
    ),
    "end": Kind("filled", "last item of {a}; the end of {a}", lambda a: a[-1]),
    "occurrences": Kind("list", "how often {k} is in {a}; count of {k} in {a}", list.count),
    "contains": Kind("list", "whether {k} is in {a}; does {a} have a {k}?", lambda a, k: k in a),
    "different": Kind(
        "list",
        "how many different items {a} has; {a} without repeats, counted",
        lambda a: len(set(a)),
    ),
    "append": Kind("list", "{a} with {k} at its end; {a} and then {k}", lambda a, k: [*a, k]),
    "spread": Kind(
        "filled", "spread of {a}; largest minus smallest of {a}", lambda a: max(a) - min(a)
    ),
}

TEXTS = {
    "upper": Kind("text", "{a} in capitals; {a} in upper case", str.upper),
    "lower": Kind("text", "{a} in small letters; {a} in lower case", str.lower),
    "text_backwards": Kind(
        "text", "text {a} backwards; text {a} from end to start", lambda a: a[::-1]
    ),
    "text_length": Kind("text", "letters in {a}, counted; how long the text {a} is", len),
    "letter_count": Kind("text", "how often '{q}' is in {a}; count of '{q}' in {a}", str.count),
    "starts": Kind(
        "text", "whether {a} starts with '{q}'; does {a} begin with '{q}'?", str.startswith
    ),
    "ends": Kind("text", "whether {a} ends with '{q}'; is '{q}' the end of {a}?", str.endswith),
    "prefix": Kind(
        "text", "first {k} letters of {a}; {a} cut after {k} letters", lambda a, k: a[:k]
    ),
    "repeat": Kind("text", "{a} {k} times over; {k} copies of the text {a}", lambda a, k: a * k),
    "replace": Kind("text", "{a} with '{q}' for '{p}'; {a}, each '{p}' made '{q}'", str.replace),
    "words": Kind("text", "words of {a}; {a} as a list of words", str.split),
    "word_count": Kind(
        "text", "number of words in {a}; words of {a}, counted", lambda a: len(a.split())
    ),
    "strip": Kind("text", "{a} without blanks around it; {a}, its ends clear of blanks", str.strip),
    "palindrome": Kind(
        "text", "whether {a} is a palindrome; is {a} the same backwards?", lambda a: a == a[::-1]
    ),
}

LOOPS = {
    "squares": Kind(
        "list", "squares of {a}; every item of {a} squared", lambda a: [i * i for i in a]
    ),
    "scaled": Kind(
        "list",
        "items of {a}, times {k}; {k} times each item of {a}",
        lambda a, k: [i * k for i in a],
    ),
    "shifted": Kind(
        "list",
        "items of {a}, plus {k}; {k} more than each item of {a}",
        lambda a, k: [i + k for i in a],
    ),
    "items_above": Kind(
        "list",
        "items of {a} above {k}; what in {a} is over {k}",
        lambda a, k: [i for i in a if i > k],
    ),
    "items_below": Kind(
        "list",
        "items of {a} below {k}; what in {a} is under {k}",
        lambda a, k: [i for i in a if i < k],
    ),
    "multiples": Kind(
        "list",
        "multiples of {k} in {a}; items of {a} that {k} divides",
        lambda a, k: [i for i in a if i % k == 0],
    ),
    "without": Kind(
        "list", "{a} without any {k}; items of {a} but {k}", lambda a, k: [i for i in a if i != k]
    ),
    "count_above": Kind(
        "list",
        "how many of {a} are above {k}; count of {a} over {k}",
        lambda a, k: sum(i > k for i in a),
    ),
    "any_above": Kind(
        "list",
        "whether any of {a} is above {k}; is one of {a} over {k}?",
        lambda a, k: any(i > k for i in a),
    ),
    "all_above": Kind(
        "list",
        "whether all of {a} are above {k}; is each of {a} over {k}?",
        lambda a, k: all(i > k for i in a),
    ),
    "numbers_to": Kind(
        "count", "numbers from 1 to {a}; list of 1 up to {a}", lambda a: list(range(1, a + 1))
    ),
    "sum_to": Kind(
        "count", "sum of 1 up to {a}; numbers from 1 to {a} added", lambda a: sum(range(a + 1))
    ),
    "sum_of_squares": Kind(
        "list", "sum of the squares of {a}; squares of {a}, added", lambda a: sum(i * i for i in a)
    ),
    "word_lengths": Kind(
        "text",
        "length of each word of {a}; how long the words of {a} are",
        lambda a: [len(i) for i in a.split()],
    ),
}

FAMILIES: dict[str, dict[str, Kind]] = {
    "arithmetic": ARITHMETIC,
    "comparison": COMPARISONS,
    "list": LISTS,
    "text": TEXTS,
    "loop": LOOPS,
}
"""Family -> kind by name, from easy to hard."""
