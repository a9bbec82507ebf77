from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest

from rewards.arithmetic import last_number


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The answer is 46.", 46),
        ("3 + 4 = 7", 7),
        ("Answer:46", 46),
        ("so it is...46...", 46),
        ("It is 46!", 46),
        ("**46**", 46),
        ("_46_", 46),
        ("_-46_", -46),
        ("(46)", 46),
        ("答案是46元。", 46),
        ("5-4", 4),
        ("5 - 4", 4),
        ("(a)-4", 4),
        ("covid-19", 19),
        ("x = -4", -4),
        ("x=-4", -4),
        ("\u22124", -4),
        ("-$4.50", Fraction(-9, 2)),
        ("$-4.50", Fraction(-9, 2)),
        ("a total of $1,234.50.", Fraction(2469, 2)),
        ("\\$1{,}000", 1000),
        ("€46", 46),
        ("46kg", 46),
        ("5km/h", 5),
        ("$5/hour", 5),
        ("46 m^2", 46),
        ("46 m^{2}", 46),
        ("46 cm²", 46),
        ("46^\\circ", 46),
        ("46 for x_{2}", 46),
        ("46 litres of H2O", 46),
        ("46.So", 46),
        ("50%", 50),
        ("50 \\%", 50),
        ("3/4", Fraction(3, 4)),
        ("-3/4", Fraction(-3, 4)),
        ("2 3/4", Fraction(11, 4)),
        ("-2 3/4 cups", Fraction(-11, 4)),
        ("\\frac{3}{4}", Fraction(3, 4)),
        ("-\\dfrac{3}{4}", Fraction(-3, 4)),
        ("\\frac{-3}{4}", Fraction(-3, 4)),
        ("2\\frac{3}{4}", Fraction(11, 4)),
        ("1.5e3", 1500),
        ("2E-3", Fraction(1, 500)),
        (".5", Fraction(1, 2)),
    ],
)
def test_the_last_number_of_a_text(text: str, expected: Any) -> None:
    assert last_number(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\\boxed{46} and 47", 46),
        ("45 \\boxed{45}, no: \\boxed{46}", 46),
        ("\\boxed{\\boxed{46}}", 46),
        ("\\boxed {46}", 46),
        ("\\boxed{x_{1} = 46}", 46),
        ("\\boxed{\\$46\\text{ per day}}", 46),
        ("\\boxed{\\frac{3}{4}} 7", Fraction(3, 4)),
        ("\\boxed{\\{46\\}}", 46),
        ("\\boxed{46^{\\circ}}", 46),
        ("<<6*7=42>>42\n#### 42", 42),
        ("#### 1,000\nThat is 7.", 1000),
        ("####42 dollars", 42),
        ("#### -$4", -4),
        ("#### \\frac{3}{4}", Fraction(3, 4)),
        ("#### $\\boxed{46}$", 46),
        ("\\boxed{45}\n#### 46", 46),
        ("#### 45\n\\boxed{46}", 46),
        ("#### Step 3\nso 46", 46),
        ("#### Result\n46", 46),
        ("#### 1. Pens\n40\n#### 2. Total\n46", 46),
        ("#### **2.** Pens in 7 boxes\n46", 46),
    ],
)
def test_the_last_marker_beats_the_last_number(text: str, expected: Any) -> None:
    assert last_number(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "none",
        "1,00",
        "1,2,3",
        "12:30",
        "10^3",
        "10^{3}",
        "10^-3",
        "10²",
        "2½",
        "1_000",
        "0x2e",
        "1.2.3",
        "3/0",
        "±4",
        "\\pm 4",
        "1e1000000000",
        "1e-1000000000",
        "46 or ٤٦",
        "46 or ４６",
        "9" * 301,
        "46 or " + "9" * 100_000,
        "x1",
        "\\boxed{}",
        "\\boxed{46",
        "46 \\boxed{A}",
        "\\boxed{45, 46}",
        "\\boxed{40 + 6}",
        "\\boxed{46, 10^3}",
        "#### 45 46",
        "#### 46 or 47",
    ],
)
def test_a_text_whose_result_cannot_be_read_has_no_number(text: str) -> None:
    assert last_number(text) is None
