from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.mathematics import final_answer, gsm8k

# Made up, in the form of GSM8K.
SOLUTION = (
    "A box holds 3 * 4 = <<3*4=12>>12 pens.\n"
    "Six boxes hold 12 * 6 = <<12*6=72>>72 pens.\n"
    "They cost 72 * 17 = $<<72*17=1224>>1,224.\n#### 1,224"
)
STEPS = SOLUTION.rpartition("\n")[0] + "\n"


def paid(completion: str, answer: Any = SOLUTION) -> float | None:
    return gsm8k(completions=[completion], answer=[answer])[0]


RIGHT = """
#### 1,224
#### 1224
####1224
#### $1,224
#### $1,224.00
#### 1224 dollars
#### 1224.
#### **1224**
#### \\boxed{1224}
1224
1,224
A: 1224
A: 1,224 dollars.
A: $1,224
Answer: 1224
Answer: **$1,224**
The answer is 1224.
The answer is $1,224.00.
The answer is: 1224 dollars
So the total is 1224 dollars.
Therefore, the pens cost $\\boxed{1224}$.
The final answer is $\\boxed{1,224}$. I hope it is correct.
\\boxed{\\$1{,}224}
\\boxed{1224 \\text{ dollars}}
\\[ \\boxed{1224} \\]
**1224**
= 1224
72 x 17 = 1224
72 * 17 = $1224
72 × 17 = 1,224 dollars
\\frac{2448}{2}
2448/2
1224%
<answer>1224</answer>
<think>First I thought \\boxed{7}, #### 8.</think> The answer is 1224.
#### 1224⏎The answer is 1224.
\\boxed{1224}⏎#### 1224
#### 1. Boxes⏎Six.⏎#### 2. Cost⏎It is 1224.
#### Step 3⏎It is 1224.
It is not 1225 but 1224.
Each costs $17. $1224 in all.
Step 4: 1224
Step 4:⏎1224
1224<|im_end|>
1.224 thousand
1.224k
$1.224k
~~1225~~ 1224
1224 <!-- 1225 -->
The answer is 1224 (twelve hundred and twenty-four).
"""


@pytest.mark.parametrize("ending", RIGHT.strip().splitlines())
@pytest.mark.parametrize("steps", ["", STEPS])
def test_a_right_result_is_paid_however_it_is_written(steps: str, ending: str) -> None:
    assert paid(steps + ending.replace("⏎", "\n")) == 1.0


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("A: 72", "#### 72"),
        ("$18.00", "#### 18"),
        ("18 dollars.", "#### 18"),
        ("-3", "#### -3"),
        ("#### -3", "#### -3"),
        ("It is \u22123 degrees.", "#### -3"),
        ("3/4", "#### 3/4"),
        ("0.75", "#### 3/4"),
        ("50%", "#### 50"),
        ("50\\%", 50),
        ("#### 1,450,000", "#### 1,450,000"),
        ("<<1+1=2>>2\n#### 2", "#### 2"),
    ],
)
def test_the_forms_of_results_that_models_write_are_read(completion: str, answer: Any) -> None:
    assert paid(completion, answer) == 1.0


GAMES = """

none
#### 1225
#### 1223
#### -1224
#### 12,24
#### 1224.5
#### 1 224
#### 1224 1225
#### 1224, 1225
#### 1224 or 1225
#### 1223 1224
#### 1223, 1224, 1225
#### 1224⏎1225
#### 1224⏎That is 1225.
#### 1224⏎#### 1225
#### 1223⏎#### 1224
#### 1225⏎#### 1224⏎#### 1223
#### 1224⏎\\boxed{1225}
\\boxed{1225}⏎#### 1224
\\boxed{1223} \\boxed{1224} \\boxed{1225}
\\boxed{1223} \\boxed{1224}
\\boxed{1223, 1224}
\\boxed{1223, 1224, 1225}
\\boxed{1224} or \\boxed{1225}
\\boxed{1224} or 1225
\\boxed{1224
\\boxed{}1224
\\boxed{72 \\times 17}
\\boxed{x}, x = 1224
1223 1224 1225
1224 1225
1223 1224
1223, 1224
1223 or 1224
1223 or maybe 1224
either 1223 or 1224
1223 dollars or 1224 dollars
1223/1224
1223 | 1224
1223; 1224
1223 (1224)
1223 (or 1224)
1223 and 1224
1223? 1224?
1223⏎1224
1223⏎1224⏎1225
a) 1223 b) 1224
(a) 1223 (b) 1224
["1223", "1224"]
{"answer": ["1223", "1224"]}
<answer>1223</answer><answer>1224</answer>
- 1223⏎- 1224
72 x 17
1 x 1224
1*1224
5 + 1224
0+1224
sqrt(1224)
√1224
\\sqrt{1224}
2 \\times 1224
2^1224
2**1224
not 1224
It is not 1224.
It isn't 1224
It cannot be 1224
anything but 1224
x ≠ 1224
x \\neq 1224
1224 of 1225
1224^2
1224²
12:24
1_224
1224e3
0x4c8
±1224
x1224
１２２４
١٢٢٤
1224 </think> 1225
#### 1224 </think>
<think>#### 1224</think>
<think>1224</think> I do not know.
1224 ٢
#### 1224 (rounded from 1224.4)
1225 <!-- 1224 -->
1225 <!-- #### 1224
~~1224~~
1225 ~~1224~~
~~#### 1224~~
1224k
1224 million
#### 1224 thousand
1224½
0b10011001000
0o2310
MCCXXIV
one thousand two hundred and twenty-four
1'224
1224₁₀
1​224
"""


@pytest.mark.parametrize("ending", GAMES.removeprefix("\n").removesuffix("\n").split("\n"))
@pytest.mark.parametrize("steps", ["", "Let me think.\n"])
def test_guesses_denials_and_near_misses_earn_nothing(steps: str, ending: str) -> None:
    assert paid(steps + ending.replace("⏎", "\n")) == 0.0


@pytest.mark.parametrize("declared", ["#### 1224\n", "\\boxed{1224} "])
def test_a_result_declared_without_end_is_none(declared: str) -> None:
    assert paid(declared * 20) == 1.0
    assert paid(declared * 21) == 0.0


def test_the_steps_alone_are_not_the_result() -> None:
    assert paid(SOLUTION) == 1.0
    assert paid(STEPS.replace("1,224.", "1,225.")) == 0.0
    assert paid(SOLUTION.replace("#### 1,224", "#### 72")) == 0.0


def test_a_row_without_an_answer_is_left_out_and_a_broken_one_is_an_error() -> None:
    assert paid("1224", None) is None
    with pytest.raises(ValueError, match="is not one number"):
        paid("1224", "They cost 72 * 17 dollars.")


def test_the_last_message_of_a_conversation_is_read() -> None:
    messages = [{"role": "assistant", "content": "A: $1,224"}]
    assert gsm8k(completions=[messages], answer=[SOLUTION]) == [1.0]


@given(st.integers(-(10**9), 10**9), st.integers(1, 10**6))
def test_a_result_is_paid_altered_or_followed_by_another_it_is_not(gold: int, by: int) -> None:
    for form in ("#### {:,}", "A: {}", "\\boxed{{{}}}", "so it is {} dollars."):
        right, wrong = form.format(gold), form.format(gold + by)
        scores = [paid(text, gold) for text in (right, wrong, f"{right} {gold + by}")]
        assert scores == [1.0, 0.0, 0.0]
        assert paid(f"{right}\n{wrong}", gold) == paid(f"{wrong}\n{right}\n{wrong}", gold) == 0.0


@given(st.text("0123456789.,/-#$ \n\\boxed{}orntx+*=", max_size=60))
def test_any_text_is_read_without_an_error(text: str) -> None:
    final_answer(text)


@pytest.mark.parametrize(
    "piece", ["1 ", "1 or ", "\\boxed{", "\\boxed{1}", "#### 1\n", "not ", " ", "or ", "\n-", "1\n"]
)
def test_a_hundred_thousand_characters_are_read_in_well_under_a_second(piece: str) -> None:
    text = piece * (100_000 // len(piece))
    start = time.process_time()
    final_answer(text)
    final_answer(f"1{text}2")
    assert time.process_time() - start < 1.0
