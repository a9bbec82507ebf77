"""Groups drawn again where they have no advantage, and put together whatever their lengths."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from rl4lm import ReinforceConfig
from rl4lm.earnings import Earnings
from rl4lm.estimator.baselines import BASELINES
from rl4lm.groups import Groups, replaced
from rl4lm.objective import shaping_of
from rl4lm.rounds import all_live, draw_rounds, drawing, earned_by, have_advantage, kept_keys
from rl4lm.types import Example, Rollout, Scores

G = 2
PLAIN = shaping_of(ReinforceConfig())
NAN = float("nan")


def drawn(rewards, tokens=None, notes="detail"):
    """Groups at the places of a step's list, recognisable by them: place -> rewards of its two."""
    rollout = Rollout.from_lists(
        [[place + 1] * (place % 3 + 1) for place in rewards for _ in range(G)],
        [[place + 1] * (place % 4 + 1 + k) for place in rewards for k in range(G)],
        G,
    )
    values = torch.tensor(list(rewards.values()), dtype=torch.float64)
    texts = [f"{place}{k}" for place in rewards for k in range(G)]
    return Groups(
        examples=[Example(f"train-{place}", "q", {}) for place in rewards],
        rollout=rollout,
        texts=texts,
        scores=Scores(
            rewards=values.nan_to_num(nan=0.0),
            valid=~values.isnan(),
            parts={"r": values},
            token_rewards=None if tokens is None else tokens * rollout.completion_mask.double(),
            extra={notes: [f"said of {text}" for text in texts]},
            metrics={"rewards/r/timeouts": 2.0, "noted": float(len(rewards))},
        ),
    )


def assert_same(found, expected):
    assert found.examples == expected.examples
    assert found.texts == expected.texts
    assert found.rollout.prompt_lists() == expected.rollout.prompt_lists()
    assert found.rollout.completion_lists() == expected.rollout.completion_lists()
    for name in ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "ended"):
        assert torch.equal(getattr(found.rollout, name), getattr(expected.rollout, name)), name
    assert torch.equal(found.scores.rewards, expected.scores.rewards)
    assert torch.equal(found.scores.valid, expected.scores.valid)
    assert torch.equal(
        found.scores.parts["r"].nan_to_num(-1.0), expected.scores.parts["r"].nan_to_num(-1.0)
    )


@pytest.mark.parametrize("at", [[0], [1, 2], [0, 1, 2]])
def test_replaced_groups_are_as_if_they_had_been_drawn_together(at):
    first = {3: (0.0, 1.0), 1: (1.0, NAN), 2: (0.5, 0.5)}
    others = {5 + k: (float(k), NAN) for k in range(len(at))}
    expected = list(first.items())
    for place, other in zip(at, others.items(), strict=True):
        expected[place] = other
    found = replaced(drawn(first), at, drawn(others))
    assert_same(found, drawn(dict(expected)))
    assert list(found.scores.extra["detail"]) == [f"said of {t}" for t in found.texts]
    # What was counted adds up; what is said of a step is said of its first prompts.
    assert found.scores.metrics == {"rewards/r/timeouts": 4.0, "noted": 3.0}


def test_notes_that_only_one_round_has_leave_the_other_empty():
    found = replaced(drawn({0: (0, 1), 1: (0, 1)}), [1], drawn({2: (0, 1)}, notes="other"))
    assert found.scores.extra == {
        "detail": ["said of 00", "said of 01", "", ""],
        "other": ["", "", "said of 20", "said of 21"],
    }


def test_rewards_of_tokens_keep_their_tokens_beside_rewards_of_completions():
    found = replaced(drawn({0: (0, 1), 3: (0, 1)}, tokens=0.5), [1], drawn({1: (3.0, 4.0)}))
    width = found.rollout.completion_mask.shape[1]
    expected = torch.zeros(4, width, dtype=torch.float64)
    expected[0, :1], expected[1, :2] = 0.5, 0.5
    expected[2, 1], expected[3, 2] = 3.0, 4.0  # at their last tokens
    assert torch.equal(found.scores.token_rewards, expected)


class Rewards:
    """Draws groups with given rewards, and remembers which places were asked for."""

    def __init__(self, rewards):
        self.rewards, self.asked = rewards, []

    def __call__(self, places):
        self.asked.append(list(places))
        return drawn({place: self.rewards.get(place, (1.0, 1.0)) for place in places})


def live(groups):
    return groups.scores.rewards.amax(dim=1) > groups.scores.rewards.amin(dim=1)


def test_a_slot_is_drawn_again_until_its_group_is_live_and_no_more_often_than_the_rounds():
    draw = Rewards({0: (0, 1), 4 + 2: (0, 1), 8 + 1: (0, 1)})
    groups, table = draw_rounds([0, 1, 2, 3], 4, 2, draw, live)
    assert draw.asked == [[0, 1, 2, 3], [5, 6, 7], [9, 11]]
    assert [e.prompt_id for e in groups.examples] == ["train-0", "train-9", "train-6", "train-11"]
    keys = [100 + k for k in range(12)]
    assert kept_keys(keys, table) == [100, 109, 106, 111]
    rows, rewards, counts = earned_by(keys, table)
    assert rows == [100, 101, 102, 103, 105, 106, 107, 109, 111]
    assert rewards.tolist() == [0.5, 1, 1, 1, 1, 0.5, 1, 0.5, 1]
    assert set(counts.tolist()) == {G}
    done = drawing(table, G)
    assert done.completions == 9 * G
    lengths = [2 * (place % 4 + 1) + 1 for hand in draw.asked for place in hand]
    assert done.tokens == sum(lengths)
    assert done.metrics == {
        "dynamic_sampling/groups": 9,
        "dynamic_sampling/rounds": 2,
        "dynamic_sampling/live_share": 3 / 9,
        "dynamic_sampling/unfilled": 1,
        "dynamic_sampling/first_reward": (0.5 + 1 + 1 + 1) / 4,
    }


def test_each_process_draws_for_its_slots_what_one_alone_would():
    rewards = dict.fromkeys((0, 3, 5, 10, 12, 15), (0, 1))
    whole, table = draw_rounds(range(4), 4, 3, Rewards(rewards), live)
    for hand in ([0, 2], [1, 3]):
        part, rows = draw_rounds(hand, 4, 3, Rewards(rewards), live)
        assert torch.equal(rows, table[hand])
        assert [e.prompt_id for e in part.examples] == [whole.examples[k].prompt_id for k in hand]


def test_without_further_rounds_everything_is_taken_and_nothing_more_is_logged():
    draw = Rewards({})
    groups, table = draw_rounds([1, 0], 2, 0, draw, all_live)
    assert draw.asked == [[1, 0]]
    assert [e.prompt_id for e in groups.examples] == ["train-1", "train-0"]
    assert drawing(table, G).metrics == {}
    assert drawing(table, G).completions == 2 * G


def test_where_no_reward_applies_to_the_first_draws_their_mean_is_undefined():
    _, table = draw_rounds([0], 1, 1, Rewards({0: (NAN, NAN), 1: (0, 1)}), live)
    assert drawing(table, G).metrics["dynamic_sampling/first_reward"] is None
    assert earned_by([7, 8], table)[2].tolist() == [0, G]


@pytest.mark.parametrize("baseline", ["prompt_leave_one_out", "prompt_mean", "length_weighted"])
@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_a_group_is_live_where_any_advantage_is_not_zero(baseline, gamma):
    earnings = Earnings(ReinforceConfig(gamma=gamma, num_generations=G), None, None)
    groups = drawn({0: (0, 1), 1: (1, 1), 2: (0, 0), 3: (NAN, NAN), 4: (1, NAN), 5: (0.1, 0.1)})
    found = have_advantage(earnings, BASELINES[baseline], PLAIN, groups)
    if gamma == 1.0:
        # A lone reward has nothing to be compared with: only the mean that sees it takes it away.
        assert found.tolist() == [True, False, False, False, baseline != "prompt_mean", False]
    else:
        # Equal rewards of completions of other lengths are discounted to other returns.
        assert found.tolist() == [True, True, False, False, baseline != "prompt_mean", True]


def test_equal_totals_of_tokens_that_earned_apart_have_an_advantage():
    earnings = Earnings(ReinforceConfig(num_generations=G), None, None)
    groups = drawn({0: (1.0, 1.0)}, tokens=0.0)
    paid = groups.scores.token_rewards
    paid[0, 0], paid[1, 0], paid[1, 1] = 1.0, 0.5, 0.5
    assert have_advantage(earnings, BASELINES["prompt_leave_one_out"], PLAIN, groups).tolist() == [
        True
    ]
    assert math.isclose(float(paid[0].sum()), float(paid[1].sum()))


def test_a_group_of_which_all_that_differs_is_masked_is_not_live():
    earnings = Earnings(ReinforceConfig(num_generations=G), None, None)
    masking = shaping_of(ReinforceConfig(mask_truncated_completions=True))
    groups = drawn({0: (0, 1), 1: (0, 1)})
    ended = torch.tensor([True, True, False, False])
    groups = replace(groups, rollout=replace(groups.rollout, ended=ended))
    baseline = BASELINES["prompt_leave_one_out"]
    assert have_advantage(earnings, baseline, masking, groups).tolist() == [True, False]
    assert have_advantage(earnings, baseline, PLAIN, groups).tolist() == [True, True]
