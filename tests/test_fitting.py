"""Rows that a reward cannot judge are left out, and counted, before anything is read."""

from __future__ import annotations

import pytest

from rl4lm.data.examples import from_dataset
from rl4lm.data.fitting import leave_out_unfit
from rl4lm.errors import DataError
from rl4lm.rewarding.lookup import resolve_rewards

ROWS = [{"prompt": f"p{k}", "level": k} for k in range(5)]


def rewarding(unfit):
    def reward(completions, level, **_):
        return [1.0] * len(completions)

    reward.unfit = unfit
    return resolve_rewards([reward])


def odd(columns):
    assert columns["prompt"] == [f"p{k}" for k in columns["level"]]
    return ["odd levels are not judged" if level % 2 else None for level in columns["level"]]


def test_rows_that_cannot_be_judged_are_left_out_with_a_count_and_the_first_reason():
    data, notes = leave_out_unfit(rewarding(odd), from_dataset(ROWS, "prompt", "train"))
    assert [example.prompt for example in data.examples(range(len(data)))] == ["p0", "p2", "p4"]
    assert notes == [
        "2 of the 5 rows of split 'train' cannot be judged by reward and are left out; row 1: odd "
        "levels are not judged"
    ]


def test_where_all_rows_fit_the_data_stay_as_they_are():
    data = from_dataset(ROWS, "prompt", "train")
    for rewards in (rewarding(lambda columns: [None] * 5), resolve_rewards([lambda **_: []])):
        assert leave_out_unfit(rewards, data) == (data, [])


def test_a_split_without_any_row_left_is_refused():
    data = from_dataset(ROWS, "prompt", "train")
    with pytest.raises(DataError, match=r"5 of the 5 rows.*row 0: never.*\nno row is left"):
        leave_out_unfit(rewarding(lambda columns: ["never"] * 5), data)


def test_the_rewards_for_programs_say_what_they_cannot_judge():
    good = '{"kind": "call", "entry": "f", "tests": [{"args": [1], "expected": 1}]}'
    rows = [{"prompt": "a", "tests": good}, {"prompt": "b", "tests": '{"kind": "dance"}'}]
    rewards = resolve_rewards(["rewards.programs:unit_tests"])
    data, notes = leave_out_unfit(rewards, from_dataset(rows, "prompt", "train"))
    assert len(data) == 1
    assert "row 1: " in notes[0]
    assert "dance" in notes[0]
