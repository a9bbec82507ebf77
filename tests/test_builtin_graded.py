"""Arithmetic in levels: right answers, one split for each problem, levels that do not overlap."""

from __future__ import annotations

import ast
import operator
from collections import Counter
from fractions import Fraction

import pytest

from rewards.arithmetic import exact_answer
from rl4lm import builtin
from rl4lm.builtin import arithmetic
from rl4lm.builtin.graded import (
    DEFAULT_ROWS,
    LEVELS,
    canonical_key,
    graded_rows,
    is_held_out,
    solve,
)
from rl4lm.errors import ConfigError

OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def value(node):
    """An expression by Python's own grammar, in fractions."""
    if isinstance(node, ast.BinOp):
        return OPERATORS[type(node.op)](value(node.left), value(node.right))
    assert isinstance(node, ast.Constant), ast.dump(node)
    return Fraction(node.value)


def problem_of(row):
    assert row["prompt"].endswith("=")
    return row["prompt"].removesuffix("=")


@pytest.fixture(scope="module")
def splits():
    return {split: graded_rows(split) for split in ("train", "test")}


@pytest.fixture(scope="module")
def rows(splits):
    return [*splits["train"], *splits["test"]]


def test_every_answer_is_the_value_by_pythons_grammar(rows):
    for row in rows:
        expected = value(ast.parse(problem_of(row), mode="eval").body)
        assert expected == Fraction(row["answer"]), row


def test_every_answer_earns_the_reward_and_another_does_not(splits):
    for row in splits["test"]:
        assert exact_answer(completions=[row["answer"]], answer=[row["answer"]]) == [1.0]
        wrong = str(int(row["answer"]) + 1)
        assert exact_answer(completions=[wrong], answer=[row["answer"]]) == [0.0]


def test_no_problem_is_in_both_splits_or_twice_in_one_in_any_order_of_its_terms(splits):
    keys = {s: [canonical_key(problem_of(row)) for row in rows] for s, rows in splits.items()}
    assert not set(keys["train"]) & set(keys["test"])
    for of_split in keys.values():
        assert len(set(of_split)) == len(of_split)


def test_no_problem_is_of_two_levels(rows):
    levels = {}
    for row in rows:
        levels.setdefault(canonical_key(problem_of(row)), set()).add(row["level"])
    assert all(len(found) == 1 for found in levels.values())


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("12+34", "34+12"),
        ("12-34+5", "5+12-34"),
        ("12*3", "3*12"),
        ("3*4+56", "56+4*3"),
        ("84/7-5", "84/7-5"),
        ("(1+2)*4", "4*(2+1)"),
        ("(9+4)*(8-3)", "(8-3)*(4+9)"),
        ("50-(12+7)", "50-(7+12)"),
    ],
)
def test_the_orders_of_a_problem_share_a_key(one, other):
    assert canonical_key(one) == canonical_key(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("12-34", "34-12"),
        ("12+34", "12-34"),
        ("84/7", "7/84"),
        ("50-(12-7)", "50-12-7"),
        ("(9-4)*3", "(4-9)*3"),
        ("56-3*4", "3*4-56"),
        ("12+3", "1+23"),
    ],
)
def test_other_problems_have_other_keys(one, other):
    assert canonical_key(one) != canonical_key(other)


def test_what_builtin_arithmetic_holds_out_is_held_out_here(rows):
    plain = [row for row in rows if row["level"] <= 3]
    sides = [is_held_out(problem_of(row)) for row in plain]
    assert sides == [arithmetic.is_held_out(row["prompt"]) for row in plain]
    assert any(sides)
    assert not all(sides)


@pytest.mark.parametrize(("level", "problems"), [(1, 99 * 100 / 2), (5, 1550)])
def test_about_a_tenth_of_a_level_is_held_out(level, problems):
    train, test = (
        len(graded_rows(split, size=10**6, levels=[level])) for split in ("train", "test")
    )
    assert train + test == pytest.approx(problems, rel=0.01)
    assert 0.08 < test / (train + test) < 0.12


def test_levels_take_turns_and_the_one_that_has_no_more_is_passed_over(splits):
    for split, rows in splits.items():
        assert [row["level"] for row in rows[: 2 * len(LEVELS)]] == [*LEVELS, *LEVELS]
        counts = Counter(row["level"] for row in rows)
        assert {counts[level] for level in LEVELS if level != 5} == {DEFAULT_ROWS[split]}
        # There are some 1,550 products and quotients in all.
        assert 0 < counts[5] < DEFAULT_ROWS[split]


def test_the_levels_ask_what_they_say(splits):
    by_level = {level: [] for level in LEVELS}
    for row in splits["train"]:
        by_level[row["level"]].append(row)
    assert all(set(row["prompt"]) <= set("0123456789+=") for row in by_level[1])
    assert all(int(row["answer"]) >= 0 for row in [*by_level[1], *by_level[2]])
    assert any(int(row["answer"]) < 0 for row in by_level[3])
    assert all("(" in row["prompt"] for row in by_level[7])
    for signs, level in (("*/", 5), ("*/", 6), ("*", 8)):
        assert all(set(row["prompt"]) & set(signs) for row in by_level[level])


def test_rows_depend_on_the_arguments_alone(splits):
    few = graded_rows("test", size=3)
    assert graded_rows("test", size=3) == few
    assert graded_rows("test", size=3, seed=1) != few
    assert few == splits["test"][: len(few)]
    assert len(few) == 3 * len(LEVELS)


def test_levels_are_picked_behind_the_name(splits):
    for asked, levels in (("3", {3}), ("1,4-5", {1, 4, 5})):
        found = builtin.dataset_rows(f"builtin:graded-arithmetic:{asked}", "test")
        assert found == [row for row in splits["test"] if row["level"] in levels]
    assert builtin.dataset_rows("builtin:graded-arithmetic", "test") == splits["test"]


@pytest.mark.parametrize("asked", ["", "0", "9", "1-", "a", "1;2", "4-2", "1-9", "-", "²"])
def test_levels_that_are_none_are_refused_with_those_there_are(asked):
    with pytest.raises(ConfigError, match=r"level"):
        builtin.dataset_rows(f"builtin:graded-arithmetic:{asked}", "test")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "tests"}, "train"),
        ({"split": "test", "size": -1}, "-1"),
        ({"split": "test", "levels": [0]}, "1 to 8"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        graded_rows(**arguments)


def test_the_built_in_tokenizer_knows_every_character(rows):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(builtin.model_path("builtin:tiny-arithmetic"))
    for text in {*"".join(row["prompt"] + row["answer"] for row in rows)}:
        assert tokenizer.unk_token_id not in tokenizer(text)["input_ids"], text


@pytest.mark.parametrize(
    ("problem", "expected"),
    [("2+3*4", 14), ("20-84/7", 8), ("50-(12-7)", 45), ("5-(2-9)", 12), ("(4-9)*(3-5)", 10)],
)
def test_points_before_lines_and_brackets_first(problem, expected):
    assert solve(problem) == expected
