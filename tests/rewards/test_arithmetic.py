from __future__ import annotations

import time
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.arithmetic import exact_answer, final_number, last_number, read_number

# Text made of the pieces that the readers treat specially; plain random text rarely holds any.
WORDS = r"4 6 46 00 , . / - + − ± e E _ ^ { } % $ : # #### \boxed{ \frac{ \pm {,} \ x ( ) ٤ ４ ² ½"
PIECES = st.lists(st.sampled_from([*WORDS.split(), " ", "\n", "#### "]), max_size=40).map("".join)
TEXTS = st.one_of(st.text(), PIECES)


def exact(completion: str, answer: Any = 46) -> float | None:
    return exact_answer(completions=[completion], answer=[answer])[0]


def final(completion: str, answer: Any = 46) -> float | None:
    return final_number(completions=[completion], answer=[answer])[0]


@pytest.mark.parametrize(
    "completion", ["46", " 46\n", "+46", "46.0", "046", "92/2", "46.000", "\t46 "]
)
def test_a_number_equal_to_the_answer_is_exact(completion: str) -> None:
    assert exact(completion) == 1.0


WRONG_FOR_EXACT = [
    # no number
    ("", 46),
    (" \n", 46),
    ("forty-six", 46),
    ("nan", 46),
    ("inf", 46),
    ("-", 46),
    (".", 0),
    (",", 0),
    ("/", 0),
    # something around it
    ("46 47", 46),
    ("45, 46, 47", 46),
    ("46 or 47", 46),
    ("46.", 46),
    ("46%", 46),
    ("$46", 46),
    ("46x", 46),
    ("=46", 46),
    ("40+6", 46),
    ("46 = 46", 46),
    ("(46)", 46),
    ("\\boxed{46}", 46),
    ("#### 46", 46),
    # nearly a number
    ("4 6", 46),
    ("4\n6", 46),
    ("- 46", -46),
    ("--46", 46),
    ("1_000", 1000),
    ("1,00", 100),
    ("1,0000", 10000),
    ("0,046", 46),
    (",046", 46),
    ("0x2e", 46),
    ("4.6e1", 46),
    ("1e999999999", 46),
    ("1E1000000000", 46),
    ("46/0", 46),
    ("0/0", 0),
    ("46/1/1", 46),
    ("46.0/1", 46),
    ("-46/-1", 46),
    ("4.6.0", 46),
    # other digits
    ("٤٦", 46),
    ("４６", 46),
    ("4６", 46),
    ("6²", 36),
    ("½", Fraction(1, 2)),
    ("46k", 46000),
    ("46 thousand", 46000),
    ("4\u200b6", 46),
    ("46\u200b", 46),
    ("\ufeff46", 46),
    ("<!-- 45 -->46", 46),
    ("**46**", 46),
    ("`46`", 46),
    ("'46'", 46),
    ("46,", 46),
    ("4'600", 4600),
    ("–46", -46),
    ("46₁₀", 46),
    ("0b101110", 46),
    ("XLVI", 46),
    # other numbers
    ("47", 46),
    ("-46", 46),
    ("460", 46),
    ("46.0000000000000000000000001", 46),
    ("0.333333333333333333", Fraction(1, 3)),
    ("9007199254740993", 9007199254740992),
    # far too long
    ("0" * 300 + "46", 46),
    ("46" * 50_000, 46),
]


@pytest.mark.parametrize(("completion", "answer"), WRONG_FOR_EXACT)
def test_near_misses_and_cheats_are_not_exact(completion: str, answer: Any) -> None:
    assert exact(completion, answer) == 0.0


@pytest.mark.parametrize(
    ("answer", "completion"),
    [
        (46, "46"),
        ("46", "46.0"),
        (" 1,000 ", "1000"),
        (0.1, "1/10"),
        (0.1, "0.1"),
        (1e22, "1" + "0" * 22),
        (-2.5e-7, "-0.00000025"),
        (Fraction(-3, 4), "-0.75"),
        (Decimal("2.50"), "5/2"),
        (np.int64(46), "46"),
        (np.float32(0.1), "0.1"),
        ("\u22125", "-5"),
        (-5, "\u22125"),
        (1_234_567, "1,234,567"),
        (0.5, ".5"),
        (0, "-0"),
    ],
)
def test_answers_of_every_type_are_compared_as_fractions(answer: Any, completion: str) -> None:
    assert exact(completion, answer) == 1.0
    assert final(completion, answer) == 1.0


@pytest.mark.parametrize("reward", [exact_answer, final_number])
@pytest.mark.parametrize(
    "answer",
    [
        *(True, False, float("nan"), float("inf"), Decimal("nan"), Decimal("1E+1000000000")),
        *("", "N/A", "3 or 4", "1e1000000000", "1/0", "9" * 301, b"46", [46]),
    ],
)
def test_an_answer_that_is_no_number_is_an_error_that_shows_it(reward: Any, answer: Any) -> None:
    with pytest.raises(ValueError, match="is not one number") as error:
        reward(completions=["46"], answer=[answer])
    assert repr(answer)[:80] in str(error.value)


@pytest.mark.parametrize("reward", [exact_answer, final_number])
def test_a_row_without_an_answer_is_left_out(reward: Any) -> None:
    assert reward(completions=["46", "46"], answer=[None, 46]) == [None, 1.0]


@pytest.mark.parametrize("reward", [exact_answer, final_number])
def test_the_reason_says_what_was_read_and_what_was_expected(reward: Any) -> None:
    logged: dict[str, list[str]] = {}
    reward(
        completions=["46", "none", "-1.50", "46"],
        answer=[47, "47", 2, 10**5000],
        log_extra=logged.__setitem__,
    )
    assert logged["detail"] == [
        "read 46, expected 47",
        "read no number, expected 47",
        "read -3/2, expected 2",
        "read 46, expected a very long number",
    ]


GUESSES = [
    *("", "45 46 47", "46 47", "46,47", "4 6", "4 600", "nan", "-46", "46.01", "0.46", "1/46"),
    *("\\boxed{45, 46, 47}", "46 \\boxed{47}", "46 \\boxed{", "\\boxed{46"),
    *("#### 46 47", "46\n#### 47", "#### 45 46", "#### 46, 47", "#### 46 or 47", "#### 45, 46, 47"),
    *("46 or 47", "46, but perhaps 47", "46\n47", "- 46\n- 47", "46/47", "46:47", "46-47", "46^2"),
    *("46²", "2^46", "x46", "46_000", "4_6", "±46", "\\pm 46", "0x2e", "forty-six", "inf", "46e1"),
    *("\\boxed{46}\n\\boxed{47}", "\\boxed{}", "46 \\boxed{A}", "\\boxed{40 + 6}", "\\boxed{46^2}"),
    *(
        "\\frac{46}{2}",
        "\\frac{1}{46}",
        "46 of 50",
        "46.0.0",
        "46 (47)",
        "٤٦",
        "４６",
        "46 ٤",
        "4６",
    ),
    *("#### 1. 46 pens\n#### 2. Total\n47", "46" * 50_000),
    *("47 <!-- 46 -->", "47 <!-- 46", "<!-- 46 -->", "~~46~~", "47 ~~46~~", "<!--\n#### 46\n-->"),
    *("46k", "46 million", "46½", "$46M", "46 thousand", "0b101110", "0o56", "46₁₀", "46⁰", "⁴⁶"),
    *(
        "4\u200b6",
        "4\u00a06",
        "4'6",
        "4.6.",
        "46,0",
        "046/10",
        "XLVI",
        "④⑥",
        "46e-1",
        "46:1",
        "1046",
    ),
    *(
        "46\u0660",
        "\u221246",
        "–\u221246",
        "46\n```\n47\n```",
        "[46](47)",
        "46^{1}",
        "46 47!",
    ),
]


@pytest.mark.parametrize("completion", GUESSES, ids=range(len(GUESSES)))
def test_guesses_and_near_misses_earn_nothing(completion: str) -> None:
    assert final(completion) == 0.0


def test_a_percent_sign_is_a_unit() -> None:
    assert [final("50%", answer) for answer in (50, "50", "50%", 0.5)] == [1.0, 1.0, 1.0, 0.0]
    assert final("0.5", "50%") == 0.0


def test_a_worked_solution_can_be_the_answer() -> None:
    solution = "She makes 9 * 2 = $<<9*2=18>>18 every day.\n#### 18"
    assert final(solution, solution) == 1.0
    assert final("It is 18.", solution) == 1.0
    assert final("It is 9.", solution) == 0.0
    assert final("18", "Thus \\boxed{18}.") == 1.0
    assert final("18", "18 dollars") == 1.0


def test_a_worked_solution_without_a_marker_is_no_answer() -> None:
    with pytest.raises(ValueError, match="is not one number"):
        final("18", "She makes 9 * 2 = 18 dollars.")


@given(TEXTS)
def test_any_completion_scores_zero_or_one(completion: str) -> None:
    assert exact(completion) in (0.0, 1.0)
    assert final(completion) in (0.0, 1.0)


@given(st.from_regex(r"\A\s{0,3}[-+\u2212]?([0-9]{1,9}|[1-9](,[0-9]{3}){1,3})(\.[0-9]+)?\s?\Z"))
def test_a_text_that_is_a_number_is_also_its_own_last_number(text: str) -> None:
    assert last_number(text) == read_number(text) is not None


@given(st.fractions())
def test_a_printed_fraction_reads_back_equal(value: Fraction) -> None:
    assert read_number(str(value)) == value
    for form in ("{}", "The answer is {}.", "7 \\boxed{{{}}} 8", "7\n#### {}\n8"):
        assert last_number(form.format(value)) == value


@given(st.integers(), st.integers())
def test_only_the_right_integer_is_exact(answer: int, guess: int) -> None:
    assert exact(f"{guess:,}", answer) == float(guess == answer)
    assert final(f"I think it is ${guess:,}.", answer) == float(guess == answer)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_printed_float_is_the_last_number_and_equals_itself(value: float) -> None:
    assert final(f"x = {value}", value) == 1.0


@given(st.decimals(allow_nan=False, allow_infinity=False, places=6))
def test_a_printed_decimal_reads_back_equal(value: Decimal) -> None:
    assert read_number(f"{value:f}") == Fraction(value)


LONG = ["1", "1,", "1,000,", "{", "}", "-", "#", "#### ", "\\boxed{", "\\boxed{1}", "\\frac{1"]
LONG += ["^", "1^", "1e", "a1.", "1 1/1 ", ".", "1/", "± ", "{,}", " ", "\\", "٤"]


@pytest.mark.parametrize("piece", LONG)
@pytest.mark.parametrize("before", ["", "\\boxed{", "#### 1"])
def test_a_hundred_thousand_characters_are_read_in_well_under_a_second(
    piece: str, before: str
) -> None:
    text = before + piece * (100_000 // len(piece))
    start = time.process_time()
    final(text)
    exact(text)
    assert time.process_time() - start < 1.0
