"""pass@k against every subset, and intervals that hold the truth as often as they say."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from rl4lm.evaluation.estimates import bootstrap_interval, mean_interval, pass_at_k, wilson


def by_subsets(passed, drawn, k):
    """The share of all subsets of k completions in which one has passed."""
    flags = [True] * passed + [False] * (drawn - passed)
    subsets = list(itertools.combinations(flags, k))
    return sum(map(any, subsets)) / len(subsets)


def test_pass_at_k_is_the_share_of_all_subsets_that_hold_a_solution():
    for drawn in range(1, 9):
        for passed, k in itertools.product(range(drawn + 1), range(1, drawn + 1)):
            expected = by_subsets(passed, drawn, k)
            assert pass_at_k(passed, drawn, k) == pytest.approx(expected, abs=1e-14)


def plug_in(passed, drawn, k):
    """What is often written instead: the observed rate in the place of the true one."""
    return 1 - (1 - passed / drawn) ** k


def expectation(estimate, p, drawn, k):
    """Over every number of solutions that `drawn` completions may have."""
    return sum(
        math.comb(drawn, c) * p**c * (1 - p) ** (drawn - c) * estimate(c, drawn, k)
        for c in range(drawn + 1)
    )


@pytest.mark.parametrize("p", [0.01, 0.2, 0.7, 1.0])
def test_pass_at_k_is_unbiased_and_the_plug_in_is_not(p):
    truth = 1 - (1 - p) ** 8
    assert expectation(pass_at_k, p, 16, 8) == pytest.approx(truth, abs=1e-12)
    if p < 1:
        assert abs(expectation(plug_in, p, 16, 8) - truth) > 1e-4


def test_pass_at_k_keeps_its_digits_where_binomials_overflow():
    k, drawn = 1000, 20000  # C(20000, 1000) has 1700 digits
    exact = 1 - math.comb(drawn - 3, k) / math.comb(drawn, k)
    assert pass_at_k(3, drawn, k) == pytest.approx(exact, rel=1e-10)


@pytest.mark.parametrize(("passed", "drawn", "k"), [(0, 4, 5), (5, 4, 1), (-1, 4, 1), (0, 4, 0)])
def test_pass_at_k_of_too_few_completions_is_refused(passed, drawn, k):
    with pytest.raises(ValueError, match=f"drawn={drawn} with k={k}"):
        pass_at_k(passed, drawn, k)


@pytest.fixture
def fewer(monkeypatch):
    """Resamples enough for a test."""
    monkeypatch.setattr("rl4lm.evaluation.estimates.RESAMPLES", 300)


def coverage(draw, truth, interval, trials=400):
    """How often an interval from fresh values holds the truth."""
    rng = np.random.default_rng(7)
    ends = [interval(draw(rng), 0.9, seed) for seed in range(trials)]
    return float(np.mean([low <= truth <= high for low, high in ends]))


def shares(p, prompts):
    return lambda rng: (rng.random(prompts) < p).astype(float)


def passes(a, b, k, prompts, drawn=16):
    """pass@k of prompts whose chances are drawn from a beta distribution."""
    table = np.array([pass_at_k(c, drawn, k) for c in range(drawn + 1)])
    return lambda rng: table[rng.binomial(drawn, rng.beta(a, b, prompts))]


def pass_rate(a, b, k):
    """The mean of 1 - (1-p)^k over beta(a, b): 1 - B(a, b + k) / B(a, b)."""
    log = math.lgamma(b + k) + math.lgamma(a + b) - math.lgamma(a + b + k) - math.lgamma(b)
    return 1 - math.exp(log)


def share_coverage(prompts, confidence=0.95):
    """p -> the chance that outcomes of 0 and 1 give an interval with p in it, by summing."""
    ends = [
        mean_interval([1.0] * right + [0.0] * (prompts - right), confidence)
        for right in range(prompts + 1)
    ]

    def at(p):
        ways = [math.comb(prompts, k) * p**k * (1 - p) ** (prompts - k) for k in range(prompts + 1)]
        return sum(w for w, (low, high) in zip(ways, ends, strict=True) if low <= p <= high)

    return at


@pytest.mark.parametrize(("prompts", "worst"), [(20, 0.83), (100, 0.90)])
def test_intervals_of_shares_hold_the_truth_as_often_as_they_say_on_average(prompts, worst):
    coverage_at = share_coverage(prompts)
    for start, stop in ((0.005, 0.05), (0.05, 0.95), (0.95, 0.995)):
        found = [coverage_at(p) for p in np.linspace(start, stop, 50)]
        assert 0.94 < np.mean(found) < 0.98
        assert min(found) > worst  # just where a count of right answers drops out of the interval


CASES = [
    pytest.param(passes(1, 1, 1, 50), pass_rate(1, 1, 1), id="pass@1"),
    pytest.param(passes(0.3, 1, 8, 50), pass_rate(0.3, 1, 8), id="pass@8"),
    pytest.param(passes(0.1, 2, 1, 40), pass_rate(0.1, 2, 1), id="hard prompts"),
    pytest.param(lambda rng: rng.normal(size=12), 0.0, id="normal"),
    pytest.param(lambda rng: rng.exponential(size=30), 1.0, id="skewed"),
]


@pytest.mark.parametrize(("draw", "truth"), CASES)
def test_intervals_hold_the_truth_as_often_as_they_say(draw, truth, fewer):
    assert coverage(draw, truth, mean_interval) >= 0.9 - 3 * math.sqrt(0.9 * 0.1 / 400)


@pytest.mark.slow
@pytest.mark.parametrize(("draw", "truth"), CASES)
def test_over_many_trials_too(draw, truth):
    found = coverage(draw, truth, mean_interval, trials=1500)
    assert found >= 0.9 - 0.03  # few and skewed values are the worst
    assert found <= 0.9 + 0.09


def test_intervals_of_middling_outcomes_are_no_wider_than_they_must_be(fewer):
    assert coverage(shares(0.4, 200), 0.4, mean_interval) < 0.94
    assert coverage(passes(1, 1, 8, 200), pass_rate(1, 1, 8), mean_interval, 200) < 0.95


def test_completions_taken_for_prompts_would_make_intervals_too_narrow():
    """The negative control: what the interval is for is that prompts differ."""

    def every_completion(rng):
        chances = np.repeat(rng.beta(0.5, 0.5, 40), 16)
        return (rng.random(640) < chances).astype(float)

    assert coverage(every_completion, 0.5, mean_interval) < 0.6


def test_the_bootstrap_alone_would_say_too_much_of_rare_outcomes(fewer):
    def bare(values, confidence, seed):
        found = bootstrap_interval(values, confidence, seed)
        return (values[0], values[0]) if math.isnan(found.low) else found

    draw = shares(0.02, 50)
    assert coverage(draw, 0.02, bare) < 0.75
    assert coverage(draw, 0.02, mean_interval) > 0.85


def test_equal_outcomes_have_an_interval_where_it_can_be_known():
    low, high = mean_interval([1.0] * 20)
    assert (round(low, 3), high) == (0.839, 1.0)  # 1 / (1 + z²/n)
    assert all(math.isnan(end) for end in mean_interval([2.5] * 20))
    assert all(math.isnan(end) for end in mean_interval([]))


def test_wilson_solves_the_equation_that_defines_it():
    """Its ends are the p at which |p̂ - p| is z standard errors of p."""
    for end in wilson(7.0, 30, 0.95):
        assert abs(7 / 30 - end) == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / 30))


def test_the_same_values_and_seed_give_the_same_interval_in_any_order():
    values = np.random.default_rng(1).random(60)
    assert mean_interval(values, 0.95, 3) == mean_interval(values[::-1].copy(), 0.95, 3)
    assert mean_interval(values, 0.95, 3) != mean_interval(values, 0.95, 4)
