from __future__ import annotations

import importlib.util
from typing import Any

import pytest

from rewards.symbolic import boxed_math

INSTALLED = importlib.util.find_spec("math_verify") is not None
symbolic = pytest.mark.skipif(not INSTALLED, reason="needs math-verify: pip install 'rl4lm[math]'")


def paid(completion: str, answer: Any) -> float | None:
    return boxed_math(completions=[completion], answer=[answer])[0]


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("\\boxed{3}", 3),
        ("so it is $\\boxed{3}$.", "\\boxed{3}"),
        ("\\boxed{x = 3}", "3"),
        ("\\boxed{0.5}", "\\frac{1}{2}"),
        ("\\boxed{\\dfrac{2}{4}}", "\\frac{1}{2}"),
        ("\\boxed{1{,}000 \\text{ pens}}", "1,000"),
        ("\\boxed{3} and again \\boxed{ 3 }", "3"),
        ("<think>\\boxed{4}</think>\\boxed{3}", "3"),
    ],
)
def test_a_boxed_number_is_compared_as_a_number(completion: str, answer: Any) -> None:
    assert paid(completion, answer) == 1.0


@pytest.mark.parametrize(
    "completion",
    [
        *("", "3", "\\boxed{}", "\\boxed{3", "\\boxed{ }", "boxed{3}", "\\boxed{4}", "\\boxed{-3}"),
        *("\\boxed{2+1}", "\\boxed{\\sqrt{9}}", "\\boxed{3, 4}", "\\boxed{3 \\text{ or } 4}"),
        *("\\boxed{3} \\boxed{4}", "\\boxed{4} \\boxed{3}", "\\boxed{3^1}", "#### 3"),
        *("\\boxed{3}</think>", "\\boxed{3} " * 21, "\\boxed{" + "3" * 501 + "}"),
    ],
)
def test_other_boxes_earn_nothing(completion: str) -> None:
    assert paid(completion, "3") == 0.0


@symbolic
@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("\\boxed{\\frac{\\sqrt{2}}{2}}", "\\frac{1}{\\sqrt{2}}"),
        ("\\boxed{x^2+2x+1}", "1 + 2x + x^2"),
        ("\\boxed{2\\sqrt{2}}", "\\sqrt{8}"),
        ("\\boxed{\\{2, 1\\}}", "\\{1,2\\}"),
        ("\\boxed{(1,2)}", "We get \\boxed{(1, 2)}."),
    ],
)
def test_equivalent_formulas_are_paid(completion: str, answer: str) -> None:
    assert paid(completion, answer) == 1.0


@symbolic
@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("\\boxed{x^2+2x}", "1 + 2x + x^2"),
        ("\\boxed{[1,2]}", "(1,2)"),
        ("\\boxed{x<3}", "x>3"),
        ("\\boxed{\\sqrt{8}, 3}", "\\sqrt{8}"),
        ("\\boxed{?}", "\\sqrt{8}"),
        ("2\\sqrt{2}", "\\sqrt{8}"),
    ],
)
def test_other_formulas_earn_nothing(completion: str, answer: str) -> None:
    assert paid(completion, answer) == 0.0


def test_a_row_without_an_answer_is_left_out() -> None:
    assert paid("\\boxed{3}", None) is None


@pytest.mark.skipif(INSTALLED, reason="math-verify is installed")
def test_without_the_library_the_error_names_the_extra() -> None:
    with pytest.raises(ImportError, match=r"rl4lm\[math\]"):
        paid("\\boxed{\\sqrt{8}}", "\\sqrt{8}")
