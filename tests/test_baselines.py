"""Baselines keep the mean of the gradient: by double loops, and by enumerating a small bandit."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rl4lm.baselines import BASELINES, SCALES, BaselineInputs, advantages

NAMES = sorted(BASELINES)
MEANS = [name for name in NAMES if name != "none"]


def baseline(name: str, rewards: Tensor, valid: Tensor | None = None) -> Tensor:
    every = torch.ones_like(rewards, dtype=torch.bool)
    inputs = BaselineInputs(
        lengths=every.long(), valid=every if valid is None else valid.expand_as(rewards)
    )
    value, state = BASELINES[name](rewards, inputs, {"kept": 1})
    assert state == {"kept": 1}
    return value


def by_double_loop(name: str, rewards: Tensor, valid: Tensor) -> Tensor:
    """[P, G], a sample at a time, straight from the definitions."""
    result = torch.zeros_like(rewards)
    cells = list(itertools.product(*map(range, rewards.shape)))
    for i in cells:
        others = [j for j in cells if valid[j] and (name == "batch_mean" or j != i)]
        if name == "prompt_leave_one_out":
            others = [j for j in others if j[0] == i[0]]
        if valid[i] and others and name != "none":
            result[i] = sum(float(rewards[j]) for j in others) / len(others)
    return result


@st.composite
def steps(draw):
    """Rewards float64 [P, G] and which of them apply."""
    shape = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    count = shape[0] * shape[1]
    values = draw(st.lists(st.floats(-10, 10), min_size=count, max_size=count))
    valid = draw(st.lists(st.booleans(), min_size=count, max_size=count))
    mask = torch.tensor(valid).view(shape)
    return torch.where(mask, torch.tensor(values, dtype=torch.float64).view(shape), 0.0), mask


@pytest.mark.parametrize("name", NAMES)
@given(step=steps())
def test_a_baseline_is_the_mean_of_what_its_name_says(name, step):
    """Samples without a reward are left out of every mean, and have a baseline of 0."""
    rewards, valid = step
    expected = by_double_loop(name, rewards, valid)
    assert torch.allclose(baseline(name, rewards, valid), expected, rtol=0, atol=1e-13)


def test_counting_samples_without_a_reward_as_zeros_would_be_noticed():
    rewards = torch.tensor([[1.0, 0.0, 3.0]], dtype=torch.float64)
    valid = torch.tensor([[True, False, True]])
    left_out = baseline("prompt_leave_one_out", rewards, valid)
    assert left_out.tolist() == [[3.0, 0.0, 1.0]]
    assert baseline("prompt_leave_one_out", rewards).tolist() == [[1.5, 2.0, 0.5]]
    assert advantages(rewards, left_out, valid).tolist() == [[-2.0, 0.0, 2.0]]


@given(st.floats(-10, 10), st.floats(-10, 10))
def test_with_two_samples_the_baseline_is_the_reward_of_the_other(first, second):
    rewards = torch.tensor([[first, second]], dtype=torch.float64)
    for name in ("prompt_leave_one_out", "batch_leave_one_out"):
        assert baseline(name, rewards)[0].tolist() == pytest.approx([second, first], abs=1e-14)


def test_a_sample_with_nothing_to_compare_with_has_no_baseline():
    rewards = torch.tensor([[0.7], [0.2]], dtype=torch.float64)
    assert baseline("prompt_leave_one_out", rewards).tolist() == [[0.0], [0.0]]
    nobody = torch.zeros(2, 1, dtype=torch.bool)
    for name in NAMES:
        assert baseline(name, rewards, nobody).tolist() == [[0.0], [0.0]]


@pytest.mark.parametrize("name", MEANS)
@pytest.mark.parametrize("value", [0.1, 0.3, 0.7])
@pytest.mark.parametrize("group", [2, 3, 6, 7, 8, 16])
def test_equal_rewards_have_an_advantage_of_exactly_zero(name, value, group):
    """Not 1e-17: Adam makes a full-sized step of that, and the sample would not be skipped."""
    rewards = torch.full((3, group), value, dtype=torch.float64)
    every = torch.ones_like(rewards, dtype=torch.bool)
    one_missing = every.clone()
    one_missing[0, 0] = group == 2  # a sample left alone has nothing to be equal to
    for mask in (every, one_missing):
        assert not advantages(rewards, baseline(name, rewards, mask), mask).any()


def test_the_obvious_formula_is_not_exactly_zero():
    spread = {}
    for group in (3, 6, 7, 8, 16):
        rewards = torch.full((group,), 0.7, dtype=torch.float64)
        leave_one_out = (rewards.sum() - rewards) / (group - 1)
        spread[group] = float((rewards - leave_one_out).abs().max())
    assert 0 < max(spread.values()) < 1e-14, spread


PAYOFFS = torch.tensor([1.0, 0.2, -0.5], dtype=torch.float64)
LOGITS = torch.tensor([0.3, -0.2, 0.6], dtype=torch.float64)


def expected_gradient(choose_baseline, prompts: int, group: int) -> Tensor:
    """E[(1/N) Σ_i (r_i - b_i) ∇log π(a_i)] over every outcome of N pulls of one bandit, [3]."""
    share = LOGITS.softmax(0)
    outcomes = torch.tensor(list(itertools.product(range(3), repeat=prompts * group)))
    probability = share[outcomes].prod(-1)  # [K]
    assert float(probability.sum()) == pytest.approx(1.0, abs=1e-12)
    rewards = PAYOFFS[outcomes].view(-1, prompts, group)  # a leading axis of outcomes
    centred = (rewards - choose_baseline(rewards)).flatten(1)  # [K, N]
    score = torch.eye(3, dtype=torch.float64)[outcomes] - share  # [K, N, 3] = ∇ log π(a)
    return torch.einsum("k,kn,kna->a", probability, centred, score) / (prompts * group)


def true_gradient() -> Tensor:
    """∂/∂logit_a of J = Σ π_a r_a, which is π_a (r_a - J)."""
    share = LOGITS.softmax(0)
    return share * (PAYOFFS - (share * PAYOFFS).sum())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("prompts", "group"), [(1, 2), (2, 2), (1, 4), (2, 3)])
def test_the_expected_gradient_is_the_true_one_times_the_stated_scale(name, prompts, group):
    scale = SCALES[name](prompts * group)
    actual = expected_gradient(lambda rewards: baseline(name, rewards), prompts, group)
    assert torch.allclose(actual, scale * true_gradient(), rtol=0, atol=1e-14)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_a_batch_mean_shrinks_the_gradient_by_exactly_one_over_n(count):
    assert SCALES["batch_mean"](count) == (count - 1) / count
    actual = expected_gradient(lambda rewards: baseline("batch_mean", rewards), 1, count)
    assert not torch.allclose(actual, true_gradient(), rtol=1e-3)


@pytest.mark.parametrize(
    ("mistake", "choose_baseline"),
    [
        ("a mean that includes the sample", lambda r: r.mean(-1, keepdim=True)),
        ("the sample's own reward", lambda r: r),
        ("the largest reward of the group", lambda r: r.amax(-1, keepdim=True)),
        ("the median of the group", lambda r: r.median(-1, keepdim=True).values),
    ],
)
def test_a_baseline_that_sees_its_own_sample_would_be_noticed(mistake, choose_baseline):
    actual = expected_gradient(choose_baseline, 1, 3)
    error = float((actual - true_gradient()).norm() / true_gradient().norm())
    assert error > 0.05, mistake


@pytest.mark.parametrize("name", NAMES)
def test_leading_axes_are_independent_steps(name):
    generator = torch.Generator().manual_seed(0)
    rewards = torch.rand(4, 5, 2, 3, generator=generator, dtype=torch.float64)
    valid = torch.rand(4, 5, 2, 3, generator=generator) > 0.3
    together = baseline(name, rewards, valid)
    assert together.shape == rewards.shape
    for i, j in itertools.product(range(4), range(5)):
        assert torch.equal(together[i, j], baseline(name, rewards[i, j], valid[i, j]))


def test_an_advantage_is_zero_where_no_reward_applied():
    rewards = torch.tensor([[1.0, math.nan]], dtype=torch.float64)
    valid = torch.tensor([[True, False]])
    assert advantages(rewards, torch.zeros_like(rewards), valid).tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize("name", NAMES)
def test_rewards_of_another_precision_or_shape_are_refused(name):
    every = torch.ones(2, 3, dtype=torch.bool)
    inputs = BaselineInputs(lengths=every.long(), valid=every)
    with pytest.raises(ValueError, match=r"must be float64 \[..., P, G\], got torch.float32"):
        BASELINES[name](torch.zeros(2, 3), inputs, {})
    with pytest.raises(ValueError, match=r"must be float64 \[..., P, G\]"):
        BASELINES[name](torch.zeros(6, dtype=torch.float64), inputs, {})
    with pytest.raises(ValueError, match=r"lengths \(2, 3\) must match rewards \(3, 2\)"):
        BASELINES[name](torch.zeros(3, 2, dtype=torch.float64), inputs, {})
