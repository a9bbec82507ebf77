"""Returns: textbook numbers, a naive double loop, and nothing outside the mask."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rl4lm.estimator.returns import after_each_token, at_last_token, returns_to_go

MASK = torch.tensor([[True, True, True], [True, False, False], [False, False, False]])
NAN = math.nan


def table(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def by_double_loop(rewards: list[float], gamma: float) -> list[float]:
    """G_t of one completion, straight from the sum."""
    places = range(len(rewards))
    return [sum(gamma ** (k - t) * rewards[k] for k in places if k >= t) for t in places]


def test_the_textbook_episode():
    """Rewards 1, 2, 3 and γ = 0.9: 3; 2 + 0.9·3 = 4.7; 1 + 0.9·2 + 0.81·3 = 5.23."""
    returns = returns_to_go(table([1, 2, 3]), torch.ones(1, 3, dtype=torch.bool), 0.9)
    assert returns[0].tolist() == pytest.approx([5.23, 4.7, 3.0], abs=1e-15)


finite = st.floats(-100, 100)


@given(
    rows=st.lists(st.lists(finite, max_size=6), min_size=1, max_size=4),
    gamma=st.floats(0, 1),
    padding=st.integers(0, 2),
)
def test_it_is_the_double_sum_whatever_stands_on_padding(rows, gamma, padding):
    width = max(map(len, rows)) + padding
    rewards = table(*(row + [NAN] * (width - len(row)) for row in rows))
    mask = torch.tensor([[t < len(row) for t in range(width)] for row in rows], dtype=torch.bool)
    returns = returns_to_go(rewards, mask, gamma)
    for i, row in enumerate(rows):
        expected = by_double_loop(row, gamma) + [0.0] * (width - len(row))
        assert returns[i].tolist() == pytest.approx(expected, abs=1e-11)


def test_rewards_are_not_discounted_twice_nor_counted_from_the_start():
    """Negative controls for the double loop: the usual slips give other numbers."""
    rewards = [1.0, 2.0, 3.0]
    (actual,) = returns_to_go(table(rewards), torch.ones(1, 3, dtype=torch.bool), 0.9).tolist()
    so_far = [1.0, 2.9, 5.61]  # discounted sums from the left
    from_the_start = [5.23, 4.23, 2.43]  # γ^k in place of γ^(k-t)
    for slip in (so_far, from_the_start, [6.0, 5.0, 3.0]):
        assert max(abs(a - b) for a, b in zip(actual, slip, strict=True)) > 0.1


@pytest.mark.parametrize("reward", [0.1, 1 / 3, -7.3, 1e-30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_undiscounted_a_reward_at_the_last_token_reaches_every_token_bit_for_bit(reward, dtype):
    mask = torch.arange(50).expand(3, -1) < torch.tensor([[50], [7], [1]])
    values = torch.tensor([reward, 2 * reward, 3 * reward], dtype=dtype)
    returns = returns_to_go(at_last_token(values, mask), mask, 1.0)
    assert returns.dtype == dtype
    assert torch.equal(returns, torch.where(mask, values[:, None], 0.0))
    short_sighted = returns_to_go(at_last_token(values, mask), mask, 0.99)
    assert not torch.equal(returns, short_sighted)


def test_without_foresight_the_returns_are_the_rewards():
    rewards = table([0.1, -2.0, 3.3], [0.7, NAN, NAN], [NAN, NAN, NAN])
    returns = returns_to_go(rewards, MASK, 0.0)
    assert torch.equal(returns, torch.where(MASK, rewards, 0.0))


@pytest.mark.parametrize("gamma", [-0.1, 1.0001, NAN])
def test_a_discount_outside_zero_and_one_is_refused(gamma):
    with pytest.raises(ValueError, match=f"gamma must be between 0 and 1, got {gamma}"):
        returns_to_go(torch.zeros(3, 3), MASK, gamma)


def test_the_reward_of_a_sequence_stands_at_its_last_token():
    placed = at_last_token(torch.tensor([5.0, -1.0, NAN]), MASK)
    assert placed.tolist() == [[0, 0, 5], [-1, 0, 0], [0, 0, 0]]


def test_what_follows_a_token_is_moved_onto_it():
    values = table([1, 2, 3], [4, NAN, 6], [NAN, 8, 9])
    moved = after_each_token(values, MASK)
    assert moved.tolist() == [[2, 3, 0], [0, 0, 0], [0, 0, 0]]
    assert torch.equal(values[0], torch.tensor([1.0, 2, 3], dtype=torch.float64))


def test_no_rows_and_no_tokens_are_fine():
    for shape in ((0, 3), (2, 0)):
        empty = torch.zeros(shape, dtype=torch.bool)
        assert returns_to_go(torch.zeros(shape), empty, 0.9).shape == shape
        assert at_last_token(torch.zeros(shape[0]), empty).shape == shape
        assert after_each_token(torch.zeros(shape), empty).shape == shape


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"rewards \(2, 3\) must be \(3, 3\) with mask"):
        returns_to_go(torch.zeros(2, 3), MASK, 1.0)
    with pytest.raises(ValueError, match=r"values \(3, 3\) must be \(3,\) with mask"):
        at_last_token(torch.zeros(3, 3), MASK)
    with pytest.raises(ValueError, match=r"values \(3,\) must be \(3, 3\) with mask"):
        after_each_token(torch.zeros(3), MASK)
    with pytest.raises(ValueError, match=r"mask \(3,\) must be \[B, T\]"):
        returns_to_go(torch.zeros(3), MASK[:, 0], 1.0)
