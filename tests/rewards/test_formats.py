from __future__ import annotations

import json
import re
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.formats import (
    fits_schema,
    length_penalty,
    matches_pattern,
    overlong,
    repetition,
    tagged,
    think_answer,
)

GOOD = "<think>2 and 2 make 4</think><answer>4</answer>"


def score(reward: Any, completion: str, **columns: Any) -> float | None:
    return reward(completions=[completion], **{name: [v] for name, v in columns.items()})[0]


@pytest.mark.parametrize(
    "completion",
    [
        GOOD,
        f"\n{GOOD}\n",
        "<think>\nFirst,\n\nsecond.\n</think>\n\n<answer>\n4\n</answer>\n",
        "<think>if a < b and b > c, <b>so</b></think> <answer>4</answer>",
        "<think>I am thinking</think><answer>\\boxed{4}</answer>",
        "<think>答案是四</think><answer>四</answer>",
        "<think>the <thinking> tag is another</think><answer>-4</answer>",
    ],
)
def test_a_thought_and_an_answer_in_their_tags_are_paid(completion: str) -> None:
    assert score(think_answer, completion) == 1.0


TAG_GAMES = [
    "",
    "4",
    "<think></think><answer></answer>",
    "<think></think><answer>4</answer>",
    "<think>why</think><answer></answer>",
    "<think> \n\t</think><answer>4</answer>",
    "<think>...</think><answer>4</answer>",
    "<think>\u200b\u200b</think><answer>4</answer>",
    "<think>\u3164\uffa0</think><answer>4</answer>",
    "<think>\u2800</think><answer>4</answer>",
    "<think>why</think><answer>?!</answer>",
    "<think>why</think><answer>\ufeff</answer>",
    "<answer>4</answer>",
    "<think>why</think>",
    "<think>why</think>4",
    "<answer>4</answer><think>why</think>",
    f"The answer: {GOOD}",
    f"{GOOD} That is 5.",
    "<think>why</think> so <answer>4</answer>",
    f"```\n{GOOD}\n```",
    f"{GOOD}<!-- 5 -->",
    GOOD + GOOD,
    "<think>why</think><think>why</think><answer>4</answer>",
    "<think>why</think><answer>4</answer><answer>5</answer>",
    "<think>why<think>why</think></think><answer>4</answer>",
    "<think>why<answer>4</answer></think>",
    "<think>why<answer>3</answer></think><answer>4</answer>",
    "<think>why</think><answer><think>4</think></answer>",
    "<think>why</answer><answer>4</think>",
    "</think>why<think></answer>4<answer>",
    "<think>why<answer>4",
    "<think>why</think><answer>4",
    "<think>why<think><answer>4<answer>",
    "think>why</think><answer>4</answer>",
    "<THINK>why</THINK><ANSWER>4</ANSWER>",
    "<Think>why</think><answer>4</answer>",
    "< think>why</think><answer>4</answer>",
    "<think >why</think><answer>4</answer>",
    "<think>why</ think><answer>4</answer>",
    "<think id=1>why</think><answer>4</answer>",
    "<think/><answer>4</answer>",
    "<think>why</think><answer/>4",
    "<think>why<think/></think><answer>4</answer>",
    "<think>why</THINK ></think><answer>4</answer>",
    "＜think＞why＜/think＞＜answer＞4＜/answer＞",
    "[think]why[/think][answer]4[/answer]",
    "&lt;think&gt;why&lt;/think&gt;&lt;answer&gt;4&lt;/answer&gt;",
    "<thinking>why</thinking><answer>4</answer>",
    "<thіnk>why</thіnk><answer>4</answer>",  # the i is Cyrillic
    "<think>why<\x00/think><answer>4</answer>",
    "<reasoning>why</reasoning><answer>4</answer>",
    r"\u003cthink\u003ewhy\u003c/think\u003e<answer>4</answer>",
    "<think>" * 1000,
]


@pytest.mark.parametrize("completion", TAG_GAMES, ids=range(len(TAG_GAMES)))
def test_what_only_looks_like_a_thought_and_an_answer_earns_nothing(completion: str) -> None:
    assert score(think_answer, completion) == 0.0


def test_the_reason_names_the_tags_that_were_found() -> None:
    logged: dict[str, list[str]] = {}
    think_answer(completions=["<think>4", GOOD], log_extra=logged.__setitem__)
    expected = "tags <think>, expected <think> </think> <answer> </answer>"
    assert logged["detail"] == [expected, "the sections as expected"]


def test_text_may_be_asked_for_behind_the_sections() -> None:
    thought = tagged("think", then_text=True)
    assert score(thought, "<think>why</think> It is 4.") == 1.0
    for wrong in ("<think>why</think>", "<think>why</think> ...", "4 <think>why</think> 4"):
        assert score(thought, wrong) == 0.0


def test_a_tag_that_the_prompt_has_opened_is_not_opened_again() -> None:
    opened = tagged("think", then_text=True, first_is_open=True)
    assert score(opened, "why</think> It is 4.") == 1.0
    assert score(opened, "<think>why</think> It is 4.") == 0.0
    assert score(opened, "It is 4.") == 0.0


def test_a_section_may_be_asked_to_say_more() -> None:
    longer = tagged("think", "answer", least={"think": 10})
    assert score(longer, GOOD) == 1.0
    assert score(longer, "<think>ok, so: 4 -- .......</think><answer>4</answer>") == 0.0


@pytest.mark.parametrize("names", [(), ("a", "a"), ("a", "A"), ("a b",), ("<a>",), ("",), ("(a",)])
def test_what_cannot_be_tags_is_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="expected distinct names"):
        tagged(*names)


def test_asking_more_of_no_section_is_refused() -> None:
    with pytest.raises(ValueError, match="'thought', which is no section"):
        tagged("think", least={"thought": 3})


PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "pattern": "^[A-Z][a-z]+$"},
        "age": {"type": "integer", "minimum": 0, "exclusiveMaximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b", 1]}, "maxItems": 2, "minItems": 1,
                 "uniqueItems": True},
        "score": {"anyOf": [{"type": "null"}, {"type": "number"}]},
        "kind": {"const": 1},
        "note": {"type": ["string", "boolean"], "maxLength": 3},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}  # fmt: skip


@pytest.mark.parametrize(
    "completion",
    [
        '{"name": "Ada", "age": 36}',
        ' {"age": 36.0,\n "name": "Ada"}\n',
        '```json\n{"name": "Ada", "age": 36}\n```',
        '\n```\n{"name": "Ada",\n "age": 0}\n```\n',
        '{"name": "Ada", "age": 36, "tags": ["a", 1.0], "score": null, "kind": 1.0, "note": true}',
        '{"name": "Ada", "age": 36, "tags": ["b"], "score": 1e3, "note": "abc"}',
        r'{"name": "\u0041da", "age": 36}',
    ],
)
def test_a_value_that_fits_the_schema_is_paid(completion: str) -> None:
    assert score(fits_schema, completion, schema=PERSON) == 1.0
    assert score(fits_schema, completion, schema=json.dumps(PERSON)) == 1.0


JSON_GAMES = [
    "",
    "{}",
    "[]",
    "null",
    "true",
    '""',
    '"{\\"name\\": \\"Ada\\", \\"age\\": 36}"',
    '[{"name": "Ada", "age": 36}]',
    '{"name": "Ada"}',
    '{"age": 36}',
    '{"name": "", "age": 36}',
    '{"name": " ", "age": 36}',
    '{"name": null, "age": 36}',
    '{"name": ["Ada"], "age": 36}',
    '{"name": "ada", "age": 36}',
    '{"name": "Ada", "age": "36"}',
    '{"name": "Ada", "age": true}',
    '{"name": "Ada", "age": 36.5}',
    '{"name": "Ada", "age": -1}',
    '{"name": "Ada", "age": 150}',
    '{"name": "Ada", "age": 1e999}',
    '{"name": "Ada", "age": NaN}',
    '{"name": "Ada", "age": Infinity}',
    '{"name": "Ada", "age": ' + "9" * 5000 + "}",
    '{"name": "Ada", "age": 036}',
    '{"name": "Ada", "age": 0x24}',
    '{"name": "Ada", "age": 36, "age": 37}',
    '{"name": "x", "name": "Ada", "age": 36}',
    '{"name": "Ada", "age": 36, "more": 1}',
    '{"Name": "Ada", "name": "Ada", "age": 36}',
    '{"name": "Ada", "age": 36, "tags": []}',
    '{"name": "Ada", "age": 36, "tags": ["a", "a"]}',
    '{"name": "Ada", "age": 36, "tags": [1, 1.0]}',
    '{"name": "Ada", "age": 36, "tags": ["a", "b", 1]}',
    '{"name": "Ada", "age": 36, "tags": ["c"]}',
    '{"name": "Ada", "age": 36, "tags": [true]}',
    '{"name": "Ada", "age": 36, "score": "1"}',
    '{"name": "Ada", "age": 36, "kind": true}',
    '{"name": "Ada", "age": 36, "note": "long"}',
    '{"name": "Ada", "age": 36, "note": 1}',
    "{'name': 'Ada', 'age': 36}",
    '{name: "Ada", age: 36}',
    '{"name": "Ada", "age": 36,}',
    '{"name": "Ada", "age": 36',
    '{"name": "Ada", "age": 36}}',
    '{"name": "Ada", "age": 36} {"name": "Bob", "age": 3}',
    '{"name": "Ada", "age": 36} // done',
    'Here it is: {"name": "Ada", "age": 36}',
    'Here it is:\n```json\n{"name": "Ada", "age": 36}\n```',
    '```json\n{"name": "Ada", "age": 36}\n```\nor\n```json\n{"name": "Bob", "age": 3}\n```',
    '```json\n{"name": "Ada", "age": 36}',
    '```python\n{"name": "Ada", "age": 36}\n```',
    '\ufeff{"name": "Ada", "age": 36}',
    '{"name": "Ada\n", "age": 36}',
    "[" * 50_000,
    "[" * 90 + "]" * 90,
    '{"name": "Ada", "age": 36}' + " " * 100_000,
]


@pytest.mark.parametrize("completion", JSON_GAMES, ids=range(len(JSON_GAMES)))
def test_what_does_not_fit_the_schema_earns_nothing(completion: str) -> None:
    assert score(fits_schema, completion, schema=PERSON) == 0.0


def test_a_schema_of_additional_names_holds_for_each_of_them() -> None:
    numbers = {"type": "object", "additionalProperties": {"type": "number"}}
    assert score(fits_schema, '{"a": 1, "b": 2.5}', schema=numbers) == 1.0
    assert score(fits_schema, '{"a": 1, "b": "2"}', schema=numbers) == 0.0


@pytest.mark.parametrize(
    ("schema", "shown"),
    [
        ({"type": "object", "minProperties": 1}, "minProperties"),
        ({"properties": {"a": {"$ref": "#/x"}}}, r"\$ref"),
        ({"items": {"format": "email"}}, "format"),
        ({"type": "list"}, "'list'"),
        ('{"type": ', "not JSON"),
        ("[]", "is not an object"),
    ],
)
def test_a_schema_that_cannot_be_checked_in_full_is_an_error(schema: Any, shown: str) -> None:
    with pytest.raises(ValueError, match=shown):
        score(fits_schema, "{}", schema=schema)


def test_a_row_without_a_schema_or_pattern_is_left_out() -> None:
    assert score(fits_schema, "{}", schema=None) is None
    assert score(matches_pattern, "a", pattern=None) is None


DATE = r"[0-9]{4}-[0-9]{2}-[0-9]{2}"
PATTERN_GAMES = [
    *("", "2024", "2024-01", "2024-01-02 or 2024-01-03", "2024-01-022", "x2024-01-02"),
    *("2024-01-02\n2024-01-03", "2024-01-02\n\nx", "It is 2024-01-02", "2024-01-02.", "2024/01/02"),
    *(
        "２０２４-01-02",
        "2024\u221201\u221202",
        "2024-01-0２",
        DATE,
        "2024-01-02\x00",
        "2024 -01-02",
    ),
    *("2024-01-02" + " " * 100_000, "٢٠٢٤-٠١-٠٢"),
    *("**2024-01-02**", "`2024-01-02`", "```\n2024-01-02\n```", "<!-- x -->2024-01-02"),
    *("2024-01-02<!-- x -->", "\u200b2024-01-02", "2024-01-02\u200b", "\ufeff2024-01-02"),
    *("2024–01–02", "2024—01—02", "2024‑01‑02", "2024-1-2", "24-01-02", "02024-01-02"),
    *("-2024-01-02", "2024-01--02", "2024--01-02", "2024-01-02-", "(2024-01-02)", '"2024-01-02"'),
    *("2024-01-O2", "2O24-01-02", "l024-01-02", "2024-01-02T00:00", "2024-01-02 00:00"),
    *("2024-01-02\t2024-01-02", "date: 2024-01-02", "\\boxed{2024-01-02}", "<answer>2024-01-02"),
]


@pytest.mark.parametrize("completion", PATTERN_GAMES, ids=range(len(PATTERN_GAMES)))
def test_what_the_pattern_does_not_match_as_a_whole_earns_nothing(completion: str) -> None:
    assert score(matches_pattern, completion, pattern=DATE) == 0.0


@pytest.mark.parametrize("completion", ["2024-01-02", " 2024-01-02\n"])
def test_a_completion_that_the_pattern_matches_is_paid(completion: str) -> None:
    assert score(matches_pattern, completion, pattern=DATE) == 1.0


def test_a_broken_pattern_is_an_error() -> None:
    with pytest.raises(re.error):
        score(matches_pattern, "a", pattern="(")


def ids_score(reward: Any, ids: list[int]) -> float:
    return reward(completions=["x"], completion_ids=[ids])[0]


def test_the_overlong_penalty_is_a_slope_down_to_the_limit() -> None:
    penalty = overlong(most=100, margin=20)
    lengths = [0, 79, 80, 81, 90, 99, 100, 101, 1000]
    expected = [0.0, 0.0, 0.0, -1 / 20, -10 / 20, -19 / 20, -1.0, -1.0, -1.0]
    assert [ids_score(penalty, [1] * length) for length in lengths] == expected
    assert penalty.minimum == -1.0


def test_an_overlong_penalty_without_margin_is_a_plain_limit() -> None:
    assert [ids_score(overlong(3, 0), [1] * length) for length in (2, 3, 4)] == [0.0, 0.0, -1.0]


def test_the_length_penalty_is_in_proportion_and_bounded() -> None:
    penalty = length_penalty(most=10, penalty=-0.5)
    assert [ids_score(penalty, [1] * n) for n in (0, 5, 10, 99)] == [0.0, -0.25, -0.5, -0.5]


@given(st.lists(st.integers(0, 3), max_size=30), st.integers(1, 4))
def test_the_repetition_penalty_counts_n_grams(ids: list[int], size: int) -> None:
    seen: list[list[int]] = []
    repeated = 0
    for start in range(len(ids) - size + 1):
        repeated += ids[start : start + size] in seen
        seen.append(ids[start : start + size])
    expected = -2.0 * repeated / len(seen) if seen else 0.0
    assert ids_score(repetition(size, -2.0), ids) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("make", "given"),
    [
        (overlong, (10, 11)),
        (overlong, (10, -1)),
        (length_penalty, (0,)),
        (length_penalty, (5, 1.0)),
        (repetition, (0,)),
        (repetition, (3, 0.5)),
    ],
)
def test_settings_that_make_no_penalty_are_refused(make: Any, given: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError, match="expected"):
        make(*given)


@given(st.text())
def test_any_text_scores_zero_or_one(text: str) -> None:
    assert score(think_answer, text) in (0.0, 1.0)
    assert score(fits_schema, text, schema={}) in (0.0, 1.0)


@pytest.mark.parametrize(
    "piece", ["<", "< ", "<think", "<think>", "<think ", "```json\n", "\n```", "</", "[", '{"a":']
)
def test_a_hundred_thousand_characters_of_form_are_read_in_well_under_a_second(piece: str) -> None:
    text = piece * (99_000 // len(piece))
    start = time.process_time()
    score(think_answer, text)
    score(fits_schema, text, schema={})
    assert time.process_time() - start < 1.0
