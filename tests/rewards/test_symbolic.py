from __future__ import annotations

import importlib.util
import time
from typing import Any

import pytest

from rewards.symbolic import SECONDS, boxed_math

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


EQUIVALENT = r"""
x^2 - 1 | (x-1)(x+1)
(x+1)^3 | x^3+3x^2+3x+1
\frac{x^2-1}{x-1} | x+1
\frac{1}{x} + \frac{1}{y} | \frac{x+y}{xy}
2(x+3) | 2x+6
a^2+2ab+b^2 | (a+b)^2
\frac{a}{b} | a/b
\frac12 x | \frac{x}{2}
0.5x | \frac{x}{2}
\sqrt{50} | 5\sqrt{2}
\sqrt{12} | 2\sqrt3
\frac{3}{\sqrt{3}} | \sqrt{3}
\frac{1}{1+\sqrt{2}} | \sqrt{2}-1
\sqrt[3]{16} | 2\sqrt[3]{2}
2^{1/2} | \sqrt{2}
x^{-1} | \frac{1}{x}
e^{2x} | (e^x)^2
\ln(x^2) | \ln x^2
\log_2 (8) x | 3x
\sin^2 x + \cos^2 x + x | 1 + x
\sin(2x) | 2\sin x\cos x
\cos(2x) | 1-2\sin^2 x
\tan x | \frac{\sin x}{\cos x}
\pi/2 | \frac{\pi}{2}
\frac{3\pi}{4} | 0.75\pi
4\pi r^2 | 4 r^2 \pi
(-\infty,-1)\cup(1,\infty) | (1,\infty)\cup(-\infty,-1)
x \in [0,1) | [0,1)
x < 3 | 3 > x
x \geq -2 | -2 \leq x
x = 3y | 3y
y = 2x + 1 | y = 1 + 2x
\{1, 2, 3\} | \{3, 2, 1\}
\{x, y\} | \{y,x\}
(1, -2, 3) | (1,-2,3)
(\frac{1}{2}, \sqrt{2}) | (0.5, \sqrt2)
\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix} | \begin{bmatrix}1&2\\3&4\end{bmatrix}
\begin{pmatrix} x \\ \frac12 \end{pmatrix} | \begin{pmatrix}x\\0.5\end{pmatrix}
3 + 4i | 4i + 3
\frac{d}{2} | d/2
\pm \sqrt{2} | \sqrt{2}, -\sqrt{2}
|x| | \left|x\right|
\left( x + 1 \right) | x+1
\dfrac{x}{2} | \frac{x}{2}
\tfrac{\sqrt{3}}{2} | \frac{\sqrt3}{2}
2 \cdot x | 2x
2 \times x | 2x
x \div 2 | \frac{x}{2}
\text{(B)} | (\text{B})
30^\circ | 30^{\circ}
\sqrt{2} \text{ cm} | \sqrt{2}
2\sqrt{2}\ \text{units} | 2\sqrt{2}
$\sqrt{8}$ | 2\sqrt{2}
\sqrt{8}. | 2\sqrt{2}
\left\{1,2\right\} | \{1,2\}
\frac{\pi^2}{6} | \pi^2/6
\sqrt{8} | x = 2\sqrt{2}
\sqrt{8} | \frac{4}{\sqrt{2}} = 2\sqrt{2}
\sqrt{8} | 2\sqrt{2} \approx 2.83
x+1 | f(x) = 1 + x
\sqrt{8} | \text{length} = 2\sqrt{2}
"""


@symbolic
@pytest.mark.parametrize("pair", EQUIVALENT.strip().splitlines())
def test_a_formula_is_paid_however_it_is_written(pair: str) -> None:
    answer, said = pair.split(" | ")
    assert paid(f"so \\boxed{{{said}}}", answer) == 1.0


DIFFERENT = r"""
x^2 - 1 | x^2 + 1
(x+1)^3 | x^3+3x^2+3x
\frac{x}{y} | \frac{y}{x}
2(x+3) | 2x+3
(a+b)^2 | a^2+b^2
\sqrt{50} | 5\sqrt{3}
\sqrt{a+b} | \sqrt{a}+\sqrt{b}
\sqrt{2} | 1.4
\sqrt{2} | 1.41421
\frac{\pi}{2} | 1.5707963
\pi | \frac{22}{7}
\pi | 3.14159
\frac{\sqrt{3}}{2} | 0.866
\sqrt{2} | -\sqrt{2}
\sqrt{2} | \pm\sqrt{2}
\pm\sqrt{2} | \sqrt{2}
\sqrt{2} | \sqrt{2}, \sqrt{3}
\sqrt{2} | \sqrt{2} \text{ or } \sqrt{3}
\sqrt{2} | \sqrt{3} \text{ or } \sqrt{2}
\{1,2\} | \{1,2,3\}
\{1,2\} | \{1\}
(1,2) | (2,1)
(1,2) | [1,2]
(1,2) | [1,2)
[0,1) | (0,1]
(-\infty,3) | (-\infty,3]
x<3 | x\leq 3
x<3 | x>3
x=3y | y=3x
y=2x+1 | y=2x-1
y=2x+1 | x=2y+1
\begin{pmatrix}1&2\\3&4\end{pmatrix} | \begin{pmatrix}1&3\\2&4\end{pmatrix}
\begin{pmatrix}1\\2\end{pmatrix} | \begin{pmatrix}1&2\end{pmatrix}
3+4i | 3-4i
i | 1
\sin x | \cos x
\sin^2 x | \sin x^2
e^{2x} | e^x
\ln x | \log_2 x
2^{x+1} | 2^x+1
n! | n
|x| | x
\text{even} | \text{odd}
\text{(B)} | \text{(A)}
\text{B} | \text{A or B}
x+1 | y+1
\frac{1}{x+1} | \frac{1}{x}+1
\sqrt{2} | 1.414214
x+1 | 1 + x = 2
x+1 | 3 = x+1
x+1 | x = x+1 = 5
"""


@symbolic
@pytest.mark.parametrize("pair", DIFFERENT.strip().splitlines())
def test_a_formula_that_only_looks_alike_earns_nothing(pair: str) -> None:
    answer, said = pair.split(" | ")
    assert paid(f"so \\boxed{{{said}}}", answer) == 0.0


# In the box, where 2\\sqrt{2} is right; and around it.
BOXED_GAMES = r"""
\text{eight}
\sqrt{8
\infty
?
\sqrt{x}
\sqrt{8} = 3
3 = \sqrt{8}
\sqrt{8} \neq 3
\neg \sqrt{8}
\text{not } 2\sqrt{2}
2\sqrt{2}\%
2\sqrt{2} + \epsilon
2\sqrt{2}; 3
2\sqrt{2} \text{ and } 3
(2\sqrt{2}, 3)
[2\sqrt{2}, 3]
\ge 2\sqrt{2}
x \ge 2\sqrt{2}
2\sqrt{2}2
２√２
2,828
\mathbb{R}
x = 2\sqrt{2}, y = 3
\frac{0}{0}
\text{2\sqrt{2}}
\boxed{3}
\%2\sqrt{2}
<!-- 2\sqrt{2} -->
\phantom{2\sqrt{2}} 3
\color{white}{2\sqrt{2}}
1 \to 2\sqrt{2}
2.828427
(-8)^{1/2}
"""
GAMES = r"""
2\sqrt{2}
$2\sqrt{2}$
The answer is 2\sqrt{2}.
#### 2\sqrt{2}
\boxed 2\sqrt{2}
\boxed{2\sqrt{2}
\\boxed{{2\sqrt{2}
boxed{2\sqrt{2}}
\box{2\sqrt{2}}
\fbox{2\sqrt{2}}
\BOXED{2\sqrt{2}}
\boxed(2\sqrt{2})
\boxed[2\sqrt{2}]
\boxed{}2\sqrt{2}
\boxed{ }
\boxed{3} \boxed{2\sqrt{2}}
\boxed{2\sqrt{2}} \boxed{3}
\boxed{2\sqrt{2}} \boxed{\sqrt{8}}
\boxed{2\sqrt{2} \boxed{3}}
\boxed{2\sqrt{2}}</think>
<think>\boxed{2\sqrt{2}}</think> 3
<think>\boxed{2\sqrt{2}}</think> \boxed{3}
ｂｏｘｅｄ{2\sqrt{2}}
\bоxed{2\sqrt{2}}
"""


@symbolic
@pytest.mark.parametrize("said", BOXED_GAMES.strip().splitlines())
def test_guesses_and_hidden_text_in_the_box_earn_nothing(said: str) -> None:
    assert paid(f"\\boxed{{{said}}}", "\\sqrt{8}") == 0.0


@symbolic
@pytest.mark.parametrize("completion", GAMES.strip().splitlines())
def test_boxes_that_are_none_or_several_earn_nothing(completion: str) -> None:
    assert paid(completion, "\\sqrt{8}") == 0.0


HOSTILE = [
    "9^{9^{9}}",
    "x^{9^{9^9}}",
    "10^{-9^{9^9}}",
    "2^{2^{2^{2^{2^{2}}}}}",
    "((x+y+z+w)^{60})^{60}",
    "(x+1)^{10000}",
    "10000000!",
    "(100000!)!",
    "\\binom{1000000}{500000}",
    "\\gcd(10^{1000000},7)",
    "\\log_{2}(9^{9^{9}})",
    "\\sin(10^{10^{10}})",
    "\\lfloor 9^{9^9}\\rfloor",
    "\\sum_{k=1}^{100000000} \\frac{1}{k}",
    "\\sum_{n=1}^{\\infty} \\frac{\\sin n}{n^3}",
    "\\prod_{k=1}^{1000000} k",
    "\\int_0^1 e^{x^2} \\sin(x^3) dx",
    "\\int e^{x^x} dx",
    "\\begin{pmatrix}" + "\\\\".join(["&".join("1" * 10)] * 10) + "\\end{pmatrix}^{1000000}",
    "\\begin{pmatrix}" + "&".join(["x"] * 200) + "\\end{pmatrix}",
    "{" * 240 + "x" + "}" * 240,
    "(" * 240 + "x" + ")" * 240,
    "\\sqrt{" * 70 + "x" + "}" * 70,
    "|x|" * 100,
    "x<" * 100 + "x",
    "\\lim_{x\\to 0} \\frac{\\sin(\\sin(\\sin x))}{x^{100}}",
    "{" * 50_000 + "}" * 50_000,
    "\\frac" * 90,
    "x=" * 200 + "x",
    "\x00\ud800",
]


@symbolic
@pytest.mark.slow
def test_formulas_that_cannot_be_computed_are_wrong_within_seconds_and_spare_the_others() -> None:
    logged: dict[str, list[str]] = {}
    texts = [f"\\boxed{{{text}}}" for hostile in HOSTILE for text in (hostile, "2\\sqrt{2}")]
    began = time.monotonic()
    scores = boxed_math(
        completions=texts, answer=["\\sqrt{8}"] * len(texts), log_extra=logged.__setitem__
    )
    assert scores == [0.0, 1.0] * len(HOSTILE)
    assert time.monotonic() - began < 10 * SECONDS * len(HOSTILE)
    lost = sum(map(bool, logged["lost"]))
    assert lost == sum("timed out" in note or "crashed" in note for note in logged["detail"]) > 10


@symbolic
def test_an_answer_that_cannot_be_read_is_an_error_that_shows_it() -> None:
    with pytest.raises(ValueError, match="cannot be read as a formula"):
        paid("\\boxed{x}", "")


def test_a_row_without_an_answer_is_left_out() -> None:
    assert paid("\\boxed{3}", None) is None


@pytest.mark.skipif(INSTALLED, reason="math-verify is installed")
def test_without_the_library_the_error_names_the_extra() -> None:
    with pytest.raises(ImportError, match=r"rl4lm\[math\]"):
        paid("\\boxed{\\sqrt{8}}", "\\sqrt{8}")
