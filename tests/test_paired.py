"""Two models on the same prompts: exact p-values by brute force, and how often they cry wolf."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from rl4lm.evaluation.paired import compare, compare_all, mcnemar, sign_flips


def by_coins(only_first, only_second):
    """Every way in which the prompts that one side solves could have fallen."""
    both = only_first + only_second
    ways = [sum(coins) for coins in itertools.product((0, 1), repeat=both)]
    off = abs(only_first - both / 2)
    return sum(abs(heads - both / 2) >= off for heads in ways) / len(ways)


def test_mcnemar_counts_every_way_the_coins_could_have_fallen():
    for only_first, only_second in itertools.product(range(7), repeat=2):
        expected = by_coins(only_first, only_second)
        assert mcnemar(only_first, only_second) == pytest.approx(expected, abs=1e-15)
    assert mcnemar(600, 400) == pytest.approx(2.73e-10, rel=0.01)  # normal: z = 6.3


def test_sign_flips_are_gone_through_where_there_are_few():
    differences = np.array([0.5, 0.25, -0.1, 0.0, 0.7])
    sums = [
        abs(sum(s * d for s, d in zip(signs, differences, strict=True)))
        for signs in itertools.product((1, -1), repeat=5)
    ]
    expected = np.mean([total >= 1.35 - 1e-9 for total in sums])
    assert sign_flips(differences, 0) == pytest.approx(expected)


def test_drawn_sign_flips_agree_with_mcnemar_on_outcomes_of_0_and_1():
    differences = np.array([1.0] * 20 + [-1.0] * 8)
    assert sign_flips(differences, 0) == pytest.approx(mcnemar(20, 8), abs=0.005)
    assert sign_flips(np.ones(200), 0) == pytest.approx(1 / 20001)  # never 0


def test_a_comparison_says_who_solves_what():
    found = compare([1, 1, 1, 0, 1, math.nan], [0, 0, 1, 1, 1, 1])
    assert (found.prompts, found.only_first, found.only_second) == (5, 2, 1)
    assert found.difference == pytest.approx(0.2)
    assert (found.test, found.p_value) == ("mcnemar", 1.0)
    assert found.low < 0.2 < found.high
    assert compare([0.5, 1.0], [0.25, 0.0]).test == "sign_flips"


def test_what_applies_to_no_prompt_and_other_numbers_of_prompts_are_not_compared():
    assert math.isnan(compare([math.nan], [1.0]).difference)
    found = compare_all({"a": [1.0], "b": [1.0]}, {"a": [0.0], "b": [1.0, 1.0]})
    assert list(found) == ["a"]


def outcomes(rng, prompts, lift):
    """Two models' outcomes; what makes a prompt hard is the same for both."""
    hard = rng.beta(0.6, 0.6, prompts)
    first = rng.random(prompts) < np.clip(hard + lift, 0, 1)
    return first.astype(float), (rng.random(prompts) < hard).astype(float)


def means(rng, prompts, lift):
    hard = rng.random(prompts)
    noise = rng.normal(size=(2, prompts))
    return hard + lift + 0.3 * noise[0], hard + 0.3 * noise[1]


@pytest.mark.parametrize("draw", [outcomes, means])
def test_equal_models_differ_by_chance_as_often_as_the_p_value_says(draw, monkeypatch):
    monkeypatch.setattr("rl4lm.evaluation.paired.FLIPS", 400)
    monkeypatch.setattr("rl4lm.evaluation.estimates.RESAMPLES", 400)
    rng = np.random.default_rng(2)
    found = [compare(*draw(rng, 60, 0.0), 0.9, seed) for seed in range(300)]
    rejected = np.mean([each.p_value < 0.1 for each in found])
    assert 0.02 < rejected < 0.14  # exact for outcomes, hence below the rate
    covered = np.mean([each.low <= 0.0 <= each.high for each in found])
    assert 0.86 < covered < 0.97


def test_a_real_difference_is_seen_and_a_test_that_is_not_paired_would_miss_it(monkeypatch):
    monkeypatch.setattr("rl4lm.evaluation.paired.FLIPS", 400)
    monkeypatch.setattr("rl4lm.evaluation.estimates.RESAMPLES", 400)
    rng = np.random.default_rng(3)
    pairs = [means(rng, 60, 0.15) for _ in range(60)]
    found = [compare(first, second, 0.9, seed) for seed, (first, second) in enumerate(pairs)]
    seen = np.mean([each.p_value < 0.1 for each in found])
    apart = [
        abs(a.mean() - b.mean()) / math.sqrt((a.var() + b.var()) / 60) > 1.645 for a, b in pairs
    ]
    assert seen > np.mean(apart) + 0.1
    assert np.mean([each.low <= 0.15 <= each.high for each in found]) > 0.8
