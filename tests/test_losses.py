"""Losses: the worked numbers of the textbook bandit, the clip, and the derivatives handed on."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rl4lm.estimator.importance import clipped_completions, importance_ratio
from rl4lm.estimator.logprobs import token_logprobs
from rl4lm.estimator.losses import (
    clipped_loss,
    entropy_loss,
    grpo_k3_loss,
    kl_squared_loss,
    reinforce_loss,
    token_weights,
)


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
    pulls = [(share, estimate(-1.0, 1, 1 - baseline)), (1 - share, estimate(-1.0, 0, -baseline))]
    mean = sum(p * g for p, g in pulls)
    assert mean == pytest.approx(share * (1 - share), abs=1e-15)
    variance = sum(p * (g - mean) ** 2 for p, g in pulls)
    # σ(1 - σ)·((1 - b)(1 - σ) - bσ)²: the estimates are (1 - b)(1 - σ) and bσ.
    spread = (1 - share) * (1 - baseline) - share * baseline
    assert variance == pytest.approx(share * (1 - share) * spread**2, abs=1e-15)
    assert abs(variance - share * (1 - share) * (1 - share) ** 2) > 0.01, "as without a baseline"


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


def weights_of(loss: Callable[[Tensor], Tensor], logprobs: Tensor) -> Tensor:
    """∂L/∂log π of a loss of log-probs alone."""
    return token_weights(lambda leaf, _: loss(leaf), logprobs, torch.zeros(0)).logprobs


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
    weights = weights_of(lambda leaf: reinforce_loss(leaf, MASK, advantages, 8), LOGPROBS)
    assert weights.tolist() == [[-3 / 8, -3 / 8, -3 / 8], [-5 / 8, 0.0, 0.0]]


def test_the_weights_do_not_depend_on_the_logprobs_and_leave_no_graph():
    advantages = torch.tensor([3.0, 5.0], dtype=torch.float64)
    unknown = torch.full_like(LOGPROBS, math.nan)
    with torch.no_grad():
        weights = [
            weights_of(lambda leaf: reinforce_loss(leaf, MASK, advantages, 8), logprobs)
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


EPSILON = 0.2
# Log-ratios of the sequence: clipped high, inside, clipped low, far above, far below.
SHIFTS = torch.tensor([0.3, 0.1, -0.4, 2.0, -2.0], dtype=torch.float64)
WIDE = torch.arange(4).expand(5, -1) < torch.tensor([[4], [1], [3], [2], [4]])


def resampled(shifts: Tensor = SHIFTS) -> tuple[Tensor, Tensor]:
    """log π and log π_old [B, 4] whose sequences differ by the given log-ratios; nan outside."""
    generator = torch.Generator().manual_seed(0)
    old = -torch.rand(WIDE.shape, generator=generator, dtype=torch.float64)
    step = torch.randn(WIDE.shape, generator=generator, dtype=torch.float64)
    step = torch.where(WIDE, step, 0.0)
    lengths = WIDE.sum(1, keepdim=True)
    step = step + (shifts[:, None] - step.sum(1, keepdim=True)) / lengths
    return torch.where(WIDE, old + step, math.nan), torch.where(WIDE, old, math.nan)


def ratios_by_loop(logprobs: Tensor, old: Tensor, mask: Tensor) -> list[float]:
    rows = zip(logprobs.tolist(), old.tolist(), mask.tolist(), strict=True)
    return [
        math.prod(math.exp(new) / math.exp(was) for new, was, m in zip(*row, strict=True) if m)
        for row in rows
    ]


def textbook_minimum(logprobs: Tensor, old: Tensor, advantages: Tensor, epsilon: float) -> Tensor:
    """-(1/N) Σ_i min(ρ_i A_i, clip(ρ_i) A_i), with ρ inside the graph."""
    terms = []
    for row in range(len(WIDE)):
        ratio = (logprobs[row][WIDE[row]].sum() - old[row][WIDE[row]].sum()).exp()
        clip = ratio.clamp(1 - epsilon, 1 + epsilon)
        terms.append(torch.minimum(ratio * advantages[row], clip * advantages[row]))
    return -torch.stack(terms).sum() / 7


def test_the_ratio_is_that_of_the_whole_sequence():
    logprobs, old = resampled()
    ratio = importance_ratio(logprobs, old, WIDE)
    assert ratio.tolist() == pytest.approx(ratios_by_loop(logprobs, old, WIDE), rel=1e-14)
    assert ratio.tolist() == pytest.approx(SHIFTS.exp().tolist(), rel=1e-14)
    assert importance_ratio(old, old, WIDE).tolist() == [1.0] * 5


@pytest.mark.parametrize("epsilon", [0.0, EPSILON, 1.0, math.inf])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_clip_has_the_gradient_of_the_textbook_minimum(epsilon, sign):
    logprobs, old = resampled()
    advantages = sign * torch.tensor([1.0, -2.0, 0.5, 3.0, -1.5], dtype=torch.float64)
    leaf = logprobs.clone().requires_grad_()
    (expected,) = torch.autograd.grad(textbook_minimum(leaf, old, advantages, epsilon), leaf)
    actual = weights_of(lambda lp: clipped_loss(lp, old, WIDE, advantages, 7, epsilon), logprobs)
    assert torch.allclose(actual, expected, rtol=1e-14, atol=0)
    if epsilon == EPSILON:  # the controls: no clip, and a clip that is not pessimistic
        unclipped = weights_of(
            lambda lp: clipped_loss(lp, old, WIDE, advantages, 7, math.inf), logprobs
        )
        ratio = importance_ratio(logprobs, old, WIDE)
        two_sided = torch.where(((ratio - 1).abs() > epsilon)[:, None], 0.0, unclipped)
        assert (unclipped - expected).norm() > 0.01
        assert (two_sided - expected).norm() > 0.01


def test_a_clipped_completion_weighs_exactly_nothing_and_is_counted():
    logprobs, old = resampled()
    advantages = torch.tensor([1.0, 1.0, -1.0, -1.0, 1.0], dtype=torch.float64)
    weights = weights_of(lambda lp: clipped_loss(lp, old, WIDE, advantages, 7, EPSILON), logprobs)
    ratio = importance_ratio(logprobs, old, WIDE)
    low, high = clipped_completions(ratio, advantages, WIDE, EPSILON)
    assert low.tolist() == [False, False, True, False, False]
    assert high.tolist() == [True, False, False, False, False]
    for row in range(5):
        expected = 0.0 if low[row] or high[row] else float(-ratio[row] * advantages[row] / 7)
        assert weights[row][WIDE[row]].tolist() == pytest.approx(
            [expected] * int(WIDE[row].sum()), rel=1e-14, abs=0
        )
    assert not weights[~WIDE].any()


def test_with_advantages_by_token_each_token_is_clipped_by_its_own_sign():
    logprobs, old = resampled()
    generator = torch.Generator().manual_seed(1)
    advantages = torch.randn(WIDE.shape, generator=generator, dtype=torch.float64)
    advantages[0, 1] = 0.0
    advantages[~WIDE] = math.nan
    weights = weights_of(lambda lp: clipped_loss(lp, old, WIDE, advantages, 7, EPSILON), logprobs)
    sides: tuple[set[int], set[int]] = (set(), set())
    for i, ratio in enumerate(ratios_by_loop(logprobs, old, WIDE)):
        for t in range(int(WIDE[i].sum())):
            advantage = float(advantages[i, t])
            expected = -ratio * advantage / 7
            if advantage > 0 and ratio > 1.2:
                sides[1].add(i)
                expected = 0.0
            elif advantage < 0 and ratio < 0.8:
                sides[0].add(i)
                expected = 0.0
            assert float(weights[i, t]) == pytest.approx(expected, rel=1e-13, abs=0)
    assert all(sides)  # both cases occurred
    shares = clipped_completions(importance_ratio(logprobs, old, WIDE), advantages, WIDE, EPSILON)
    assert [set(side.nonzero().flatten().tolist()) for side in shares] == list(sides)


@pytest.mark.parametrize("epsilon", [0.0, EPSILON, math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("by_token", [False, True])
def test_before_the_policy_has_moved_it_is_reinforce_bit_for_bit(epsilon, dtype, by_token):
    _, old = resampled()
    old = old.to(dtype)
    generator = torch.Generator().manual_seed(2)
    shape = WIDE.shape if by_token else WIDE.shape[:1]
    advantages = torch.randn(shape, generator=generator, dtype=dtype)
    clipped = weights_of(lambda lp: clipped_loss(lp, old, WIDE, advantages, 7, epsilon), old)
    plain = weights_of(lambda lp: reinforce_loss(lp, WIDE, advantages, 7), old)
    assert torch.equal(clipped, plain)
    assert not any(s.any() for s in clipped_completions(torch.ones(5), advantages, WIDE, epsilon))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log_ratios_of_fifty_stay_finite(dtype):
    """exp(±50) is 5e21 and 2e-22, both within float32; only past 88 does it overflow."""
    logprobs, old = (x.to(dtype) for x in resampled(SHIFTS.sign() * 50))
    for sign in (1.0, -1.0):
        advantages = torch.full((5,), sign, dtype=dtype)
        weights = weights_of(
            lambda lp, a=advantages: clipped_loss(lp, old, WIDE, a, 7, EPSILON), logprobs
        )
        assert weights.isfinite().all()
        assert weights[SHIFTS.sign() == sign].eq(0).all()  # the pull away from 1 has ended


def test_an_overflowing_ratio_leaves_clipped_and_idle_completions_at_zero():
    """inf · 0 is nan; only the one that the pessimistic clip keeps may show the overflow."""
    logprobs, old = resampled(torch.full((5,), 1000.0, dtype=torch.float64))
    advantages = torch.tensor([1.0, 0.0, 2.0, -1.0, 0.0], dtype=torch.float64)
    weights = weights_of(lambda lp: clipped_loss(lp, old, WIDE, advantages, 7, EPSILON), logprobs)
    assert weights[3].tolist() == [math.inf, math.inf, 0.0, 0.0]
    assert not weights[torch.tensor([0, 1, 2, 4])].any()


def test_k2_is_half_the_square_of_the_sequence_and_not_of_the_tokens():
    """Log-ratios (1, 2, -1) and (3): L = (1/4)(½·2² + ½·3²), weights 2/4 and 3/4."""
    logprobs = torch.tensor([[-1.0, -1.0, -2.0], [-1.0, math.nan, math.nan]])
    reference = torch.tensor([[-2.0, -3.0, -1.0], [-4.0, math.nan, math.nan]])
    assert float(kl_squared_loss(logprobs, reference, MASK, 4)) == (2 + 4.5) / 4
    weights = weights_of(lambda lp: kl_squared_loss(lp, reference, MASK, 4), logprobs)
    assert weights.tolist() == [[0.5, 0.5, 0.5], [0.75, 0.0, 0.0]]


def test_k3_of_grpo_is_summed_over_tokens_and_averaged_over_completions():
    """∂k3/∂log π = 1 - π_ref/π, token by token; N is 4."""
    reference = torch.where(MASK, LOGPROBS - 0.5, math.nan)
    value = float(grpo_k3_loss(LOGPROBS, reference, MASK, 4))
    assert value == pytest.approx(4 * (math.exp(-0.5) - 1 + 0.5) / 4, rel=1e-14)
    weights = weights_of(lambda lp: grpo_k3_loss(lp, reference, MASK, 4), LOGPROBS)
    slope = (1 - math.exp(-0.5)) / 4
    assert weights[MASK].tolist() == pytest.approx([slope] * 4, rel=1e-14)
    assert not weights[~MASK].any()


def test_the_entropy_loss_raises_every_entropy_alike():
    entropies = torch.tensor([[1.0, 2.0, 4.0], [8.0, math.nan, math.inf]])
    assert float(entropy_loss(entropies, MASK, 5)) == -3.0
    weights = token_weights(lambda _, h: entropy_loss(h, MASK, 5), LOGPROBS, entropies)
    assert torch.equal(weights.entropies, torch.where(MASK, -1 / 5, 0.0))
    assert torch.equal(weights.logprobs, torch.zeros_like(LOGPROBS))


def test_token_weights_hold_both_derivatives_in_the_precision_of_each():
    logprobs = torch.tensor([[1.0, 2.0]], dtype=torch.float64, requires_grad=True)
    entropies = torch.tensor([[3.0, 5.0]], dtype=torch.float32)
    with torch.no_grad():
        weights = token_weights(lambda lp, h: (lp.square() * h).sum(), logprobs, entropies)
    assert weights.logprobs.tolist() == [[6.0, 20.0]]  # 2 · log π · H
    assert weights.entropies.tolist() == [[1.0, 4.0]]
    assert (weights.logprobs.dtype, weights.entropies.dtype) == (torch.float64, torch.float32)
    assert not weights.logprobs.requires_grad
    assert logprobs.grad is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: importance_ratio(x, x[:1], MASK), r"\(1, 3\) and mask \(2, 3\) must all be"),
        (lambda x: clipped_loss(x, x[:1], MASK, x, 2, 0.2), r"old_logprobs \(1, 3\) and mask"),
        (lambda x: clipped_loss(x, x, MASK, x[0], 2, 0.2), r"advantages \(3,\) must be \[B\]"),
        (lambda x: clipped_loss(x, x, MASK, x, 0, 0.2), "num_completions must be at least 1"),
        (lambda x: clipped_loss(x, x, MASK, x, 2, -0.2), "epsilon must be at least 0, got -0.2"),
        (lambda x: clipped_loss(x, x, MASK, x, 2, math.nan), "epsilon must be at least 0"),
        (lambda x: clipped_completions(x, x, MASK, 0.2), r"ratio \(2, 3\) must be \[B\] with mask"),
        (lambda x: kl_squared_loss(x, x[:1], MASK, 2), r"reference \(1, 3\) and mask \(2, 3\)"),
        (lambda x: grpo_k3_loss(x, x[:1], MASK, 2), r"reference \(1, 3\) and mask \(2, 3\)"),
        (lambda x: entropy_loss(x[:1], MASK, 2), r"entropies \(1, 3\) and mask \(2, 3\)"),
        (lambda x: entropy_loss(x, MASK, 0), "num_completions must be at least 1, got 0"),
    ],
)
def test_what_does_not_fit_is_refused_by_the_other_losses_too(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(2, 3))
