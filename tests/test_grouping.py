"""Prompts by a column."""

from __future__ import annotations

from rl4lm.evaluation.grouping import OTHERS, groups


def test_few_values_are_a_group_each_in_order():
    assert groups(["b", "a", None, "b"]) == {"a": [1], "b": [0, 3]}
    assert groups([10, 9, 10]) == {"9": [1], "10": [0, 2]}
    assert list(groups([True, False])) == ["False", "True"]


def test_many_numbers_are_cut_into_ranges_of_as_many_prompts():
    found = groups([*range(100), None])
    assert {label: len(places) for label, places in found.items()} == {
        "0 to 24": 25,
        "25 to 49": 25,
        "50 to 74": 25,
        "75 to 99": 25,
    }
    assert found["50 to 74"][0] == 50
    assert list(groups([str(n) for n in range(100)])) == list(found)


def test_of_many_words_the_common_ones_are_kept():
    found = groups(["common"] * 5 + [f"word {n}" for n in range(30)])
    assert len(found) == 12
    assert found["common"] == [0, 1, 2, 3, 4]
    assert len(found[OTHERS]) == 20
    assert sum(map(len, found.values())) == 35


def test_whatever_a_column_holds_has_a_label():
    assert list(groups([[1, 2], {"a": 1}, "x" * 99])) == ["[1, 2]", "x" * 39 + "…", "{'a': 1}"]
    assert groups([None, None]) == {}
