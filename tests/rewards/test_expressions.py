from __future__ import annotations

import operator
import time
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.expressions import MAX_BITS, NotComputable, compute
from rewards.mathematics import countdown, equal_value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("46", 46),
        (" 40 + 6\n", 46),
        ("2+3*4", 14),
        ("(2+3)*4", 20),
        ("10-4-3", 3),
        ("24/4/3", 2),
        ("1/3 + 1/3", Fraction(2, 3)),
        ("-3", -3),
        ("--3", 3),
        ("2*-3", -6),
        ("-2^2", -4),
        ("(-2)^2", 4),
        ("2^3^2", 512),
        ("2**-1", Fraction(1, 2)),
        ("0^0", 1),
        ("(-1)^(10^9+1)", -1),
        ("1,000*2", 2000),
        (".5+0.25", Fraction(3, 4)),
        ("6 × 7 ÷ 2 − 1 · 1", 20),
        ("(" * 50 + "1" + ")" * 50, 1),
    ],
)
def test_an_expression_has_its_exact_value(text: str, value: Any) -> None:
    assert compute(text).value == value


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            " ",
            "x",
            "2x",
            "2(3)",
            "(2)(3)",
            "2 3",
            "1,00",
            "46.",
            "1e3",
            "0x2e",
            "1_000",
            "٤",
            "½",
        ),
        *(
            "+",
            "2+",
            "*2",
            "2**",
            "(2",
            "2)",
            "()",
            "2=2",
            "2//3",
            "3%2",
            "5!",
            "√4",
            "2^^2",
            "[1]",
        ),
        *("1/0", "1/(2-2)", "0^-1", "2^0.5", "4^(1/2)", "9^9^9", "2^2000", "10^-400", "2^(10^300)"),
        *("9" * 400, "9" * 1001, "(" * 60 + "1" + ")" * 60, "-" * 60 + "1", "2^" * 60 + "1"),
        *(
            "__import__('os')",
            "abs(-1)",
            "1 if 1 else 2",
            "1;2",
            "1\x002",
            "int('1')",
            "9*" * 400 + "9",
        ),
    ],
)
def test_what_is_no_small_expression_is_refused(text: str) -> None:
    with pytest.raises(NotComputable):
        compute(text)


SIGNS = {"+": operator.add, "-": operator.sub, "*": operator.mul}
LEAVES = st.integers(0, 99).map(lambda number: (str(number), Fraction(number)))
TREES = st.recursive(
    LEAVES,
    lambda inner: st.builds(
        lambda a, sign, b: (f"({a[0]}{sign}{b[0]})", SIGNS[sign](a[1], b[1])),
        inner,
        st.sampled_from("+-*"),
        inner,
    ),
    max_leaves=12,
)


@given(TREES)
def test_a_tree_written_with_brackets_is_computed_as_python_would(tree: Any) -> None:
    assert compute(tree[0]).value == tree[1]


@given(st.text("0123456789.,+-*/^() ", max_size=40))
def test_any_text_is_small_or_refused(text: str) -> None:
    try:
        value = compute(text).value
    except NotComputable:
        return
    assert value.numerator.bit_length() <= MAX_BITS


@pytest.mark.parametrize("piece", ["9^", "(", "-", "1/3+", "9*", "2^9^9^9+", "1/7*"])
def test_the_longest_expressions_take_no_time(piece: str) -> None:
    start = time.process_time()
    with pytest.raises(NotComputable):
        compute((piece * 1000)[:999] + "x")
    assert time.process_time() - start < 0.2


def equal(completion: str, answer: Any) -> float | None:
    return equal_value(completions=[completion], answer=[answer])[0]


def test_expressions_are_equal_by_value() -> None:
    assert [equal(c, "2/3") for c in ("1/3+1/3", "2/3", "4/6", "1-1/3")] == [1.0] * 4
    assert [equal(c, "2/3") for c in ("0.667", "1/3", "2/3 = 2/3", "x", "")] == [0.0] * 5
    assert equal("40+6", 46) == equal("46", "50-4") == 1.0
    assert equal("46", None) is None
    with pytest.raises(ValueError, match="'forty-six' is no arithmetic expression"):
        equal("46", "forty-six")


def made(completion: str) -> float | None:
    return countdown(completions=[completion], numbers=[[3, 5, 5, 25]], target=[50])[0]


@pytest.mark.parametrize(
    "completion",
    [
        "(25 + 5) * 5 / 3",
        "5 * (25 + 5) / 3 = 50",
        "<think>25 + 5 is 30</think><answer>(25 + 5) * 5 / 3</answer>",
        "<answer> (25+5)*5÷3 = 50 </answer>",
    ],
)
def test_all_numbers_used_once_to_make_the_target_are_paid(completion: str) -> None:
    assert made(completion) == 1.0


@pytest.mark.parametrize(
    "completion",
    [
        *("", "50", "25+25", "25*(5-3)", "(25+5)*5/3*1", "(25+5)*5/3+0", "55-5", "(25+5)*5/3 = 51"),
        *(
            "(25+5)*5/3 = 50 = 50",
            "(25+5)*5/3 or 50",
            "x = (25+5)*5/3",
            "25+5+5+3 = 50",
            "25+5*5^3",
        ),
        *("<answer>(25+5)*5/3</answer><answer>1</answer>", "<answer>50</answer>", "=50", "50=50"),
        *("(25+5)*5/3; 1", "(25+5)*(5/3", "25*5/5/3*0+50", "25/(5-5)+3", "5^3-25-5", "[25,5,5,3]"),
    ],
)
def test_other_ways_to_the_target_earn_nothing(completion: str) -> None:
    assert made(completion) == 0.0
