"""The REINFORCE loss, down to the worked numbers of the textbook bandit."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rl4lm.logprobs import token_logprobs
from rl4lm.losses import logprob_weights, reinforce_loss


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def one_pull(logits: Tensor, arm: int, reward: float) -> Tensor:
    """L of a single completion of one token: an arm that was pulled, and what it paid."""
    logprobs = token_logprobs(logits[None], torch.tensor([arm]), 1.0)[None]
    mask = torch.ones(1, 1, dtype=torch.bool)
    return reinforce_loss(logprobs, mask, torch.tensor([reward], dtype=logits.dtype), 1)


def two_arms(theta: Tensor) -> Tensor:
    """Logits (0, θ), so that π(arm 1) = σ(θ)."""
    return torch.stack([torch.zeros_like(theta), theta])


def ascend(theta: float, arm: int, reward: float) -> float:
    """θ after one SGD step of rate 1."""
    parameter = torch.nn.Parameter(torch.tensor(theta, dtype=torch.float64))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    one_pull(two_arms(parameter), arm, reward).backward()
    optimizer.step()
    return parameter.item()


def estimate(theta: float, arm: int, reward: float) -> float:
    """The estimate of dJ/dθ from one pull: the negative gradient of the loss."""
    leaf = torch.tensor(theta, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(one_pull(two_arms(leaf), arm, reward), leaf)
    return -float(gradient)


def test_a_pull_that_pays_nothing_teaches_nothing():
    assert sigmoid(-1.0) == pytest.approx(0.2689, abs=5e-5)
    assert ascend(-1.0, arm=1, reward=0.0) == -1.0


def test_a_pull_that_pays_one_moves_theta_by_one_minus_pi():
    """θ' = -1 + (1 - σ(-1)) = -σ(-1) = -0.2689, and π' = σ(-0.2689) = 0.4332."""
    moved = ascend(-1.0, arm=1, reward=1.0)
    assert moved == pytest.approx(-sigmoid(-1.0), abs=1e-15)
    assert moved == pytest.approx(-0.2689, abs=5e-5)
    assert sigmoid(moved) == pytest.approx(0.4332, abs=5e-5)


@pytest.mark.parametrize("theta", [-1.0, 0.0, 2.0])
def test_the_expected_estimate_is_pi_times_one_minus_pi(theta):
    """J = σ(θ) where arm 1 pays 1 and arm 0 nothing, so dJ/dθ = σ(1 - σ); the second moment is
    σ(1 - σ)², hence at θ = 0 a mean of 0.25 and a variance of 0.125 - 0.0625 = 0.0625."""
    share = sigmoid(theta)
    pulls = [(share, estimate(theta, 1, 1.0)), (1 - share, estimate(theta, 0, 0.0))]
    mean = sum(p * g for p, g in pulls)
    variance = sum(p * (g - mean) ** 2 for p, g in pulls)
    assert mean == pytest.approx(share * (1 - share), abs=1e-15)
    assert variance == pytest.approx(share * (1 - share) ** 2 - mean**2, abs=1e-15)
    if theta == 0.0:
        assert (mean, variance) == pytest.approx((0.25, 0.0625), abs=1e-15)


@pytest.mark.parametrize("baseline", [0.5, -3.0])
def test_a_constant_baseline_changes_the_variance_and_not_the_mean(baseline):
    share = sigmoid(-1.0)
    mean = share * estimate(-1.0, 1, 1 - baseline) + (1 - share) * estimate(-1.0, 0, -baseline)
    assert mean == pytest.approx(share * (1 - share), abs=1e-15)


@pytest.mark.parametrize("payoff", [4.0, -4.0])
def test_the_loss_pulls_the_chosen_logit_by_the_return_times_one_minus_pi(payoff):
    """Logits (1, 0), the first arm pulled: ∂L/∂logit = -return · (1 - σ(1)) = ∓1.08."""
    logits = torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(one_pull(logits, 0, payoff), logits)
    expected = -payoff * (1 - sigmoid(1.0))
    assert gradient.tolist() == pytest.approx([expected, -expected], abs=1e-15)
    assert abs(expected) == pytest.approx(1.08, abs=5e-3)


MASK = torch.tensor([[True, True, True], [True, False, False]])
LOGPROBS = torch.tensor([[-1.0, -2.0, -4.0], [-8.0, math.nan, math.nan]], dtype=torch.float64)


def test_log_pi_is_a_sum_over_tokens_and_the_end_token_is_one_of_them():
    """L = -(1/2)(3·(-1 - 2 - 4) + 5·(-8)) = 30.5; the padding's nan is never touched."""
    advantages = torch.tensor([3.0, 5.0], dtype=torch.float64)
    assert float(reinforce_loss(LOGPROBS, MASK, advantages, 2)) == 30.5
    token_mean = -(3 * (-7 / 3) + 5 * -8) / 2
    without_end = -(3 * (-1 - 2) + 5 * 0) / 2
    per_micro_batch = 30.5 * 2
    assert 30.5 not in (token_mean, without_end, per_micro_batch)


def test_advantages_may_differ_by_token():
    """L = -(1/4)(1·(-1) + 0·(-2) + 2·(-4) + 5·(-8)) = 12.25; what stands on padding is unread."""
    advantages = torch.tensor([[1.0, 0.0, 2.0], [5.0, 99.0, math.nan]], dtype=torch.float64)
    assert float(reinforce_loss(LOGPROBS, MASK, advantages, 4)) == 12.25


def test_the_weights_are_minus_the_advantage_over_the_completions_of_the_step():
    """N is 8 here, the completions of the whole step, though this process holds two."""
    advantages = torch.tensor([3.0, 5.0], dtype=torch.float64)
    weights = logprob_weights(lambda leaf: reinforce_loss(leaf, MASK, advantages, 8), LOGPROBS)
    assert weights.tolist() == [[-3 / 8, -3 / 8, -3 / 8], [-5 / 8, 0.0, 0.0]]


def test_the_weights_do_not_depend_on_the_logprobs_and_leave_no_graph():
    advantages = torch.tensor([3.0, 5.0], dtype=torch.float64)
    unknown = torch.full_like(LOGPROBS, math.nan)
    with torch.no_grad():
        weights = [
            logprob_weights(lambda leaf: reinforce_loss(leaf, MASK, advantages, 8), logprobs)
            for logprobs in (LOGPROBS, unknown)
        ]
    assert torch.equal(*weights)
    assert not weights[0].requires_grad


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"mask": MASK[:1]}, r"mask \(1, 3\) must both be \[B, T\]"),
        ({"logprobs": LOGPROBS[0], "mask": MASK[0]}, r"must both be \[B, T\]"),
        ({"advantages": torch.zeros(3)}, r"advantages \(3,\) must be \[B\] or \[B, T\]"),
        ({"advantages": torch.zeros(2, 1)}, r"advantages \(2, 1\)"),
        ({"num_completions": 0}, "num_completions must be at least 1, got 0"),
    ],
)
def test_what_does_not_fit_is_refused(changed, message):
    arguments = {
        "logprobs": LOGPROBS,
        "mask": MASK,
        "advantages": torch.zeros(2),
        "num_completions": 2,
    }
    with pytest.raises(ValueError, match=message):
        reinforce_loss(**{**arguments, **changed})
