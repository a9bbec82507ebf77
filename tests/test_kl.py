"""What each term of the objective is the gradient of: by enumeration of every completion.

The policy is a table of logits per prefix over three tokens, one of which ends the completion, at
most three tokens long: 15 completions, so expectations are sums and gradients are exact. Every
reference below is autograd through the enumerated expectation and shares no code with rl4lm.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rl4lm.estimator.kl import k1, k3
from rl4lm.estimator.losses import (
    clipped_loss,
    entropy_loss,
    grpo_k3_loss,
    kl_squared_loss,
    reinforce_loss,
    token_weights,
)
from rl4lm.estimator.returns import after_each_token, returns_to_go

END, V, T = 0, 3, 3
EXACT = 1e-12  # relative residual of what is claimed to be exact, in float64


def all_completions(prefix: tuple[int, ...] = ()) -> list[tuple[int, ...]]:
    if len(prefix) == T or prefix[-1:] == (END,):
        return [prefix]
    return [o for token in range(V) for o in all_completions((*prefix, token))]


COMPLETIONS = all_completions()
PREFIXES = sorted({o[:t] for o in COMPLETIONS for t in range(len(o))})
B = len(COMPLETIONS)
MASK = torch.tensor([[t < len(o) for t in range(T)] for o in COMPLETIONS])
TOKENS = torch.tensor([[*o, *[END] * (T - len(o))] for o in COMPLETIONS])
STATES = torch.tensor(
    [[PREFIXES.index(o[:t]) if t < len(o) else 0 for t in range(T)] for o in COMPLETIONS]
)


def logits(seed: int) -> Tensor:
    """A policy: [prefixes, V]."""
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(len(PREFIXES), V, generator=generator, dtype=torch.float64)
    return table.requires_grad_()


def tables(theta: Tensor) -> tuple[Tensor, Tensor]:
    """log π and H of every token of every completion, [B, T] each, nan outside the mask."""
    shares = theta.exp() / theta.exp().sum(-1, keepdim=True)
    entropies = -(shares * shares.log()).sum(-1)
    logprobs = torch.where(MASK, shares[STATES, TOKENS].log(), math.nan)
    return logprobs, torch.where(MASK, entropies[STATES], math.nan)


def probabilities(theta: Tensor) -> Tensor:
    """π(o) of every completion, [B], from the table and not from the sum of log-probs."""
    shares = theta.exp() / theta.exp().sum(-1, keepdim=True)
    return torch.where(MASK, shares[STATES, TOKENS], 1.0).prod(dim=1)


def exact_gradient(theta: Tensor, objective: Callable[[Tensor], Tensor]) -> Tensor:
    (gradient,) = torch.autograd.grad(objective(theta), theta)
    return gradient


def expected_gradient(
    theta: Tensor, loss: Callable[[Tensor, Tensor], Tensor], behaviour: Tensor | None = None
) -> Tensor:
    """E[∇L] over single completions drawn from `behaviour` (π itself by default), N = 1.

    The loss sees all completions at once and is a sum over them, so the weights of a row times
    its probability are its share of the expectation.
    """
    logprobs, entropies = tables(theta)
    drawn = probabilities(theta if behaviour is None else behaviour).detach()[:, None]
    weights = token_weights(loss, logprobs, entropies)
    by_logprobs = torch.where(MASK, drawn * weights.logprobs, 0.0)[MASK]
    by_entropies = torch.where(MASK, drawn * weights.entropies, 0.0)[MASK]
    surrogate = by_logprobs @ logprobs[MASK] + by_entropies @ entropies[MASK]
    (gradient,) = torch.autograd.grad(surrogate, theta)
    return gradient


def residual(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


def cosine(actual: Tensor, expected: Tensor) -> float:
    return float(torch.cosine_similarity(actual.flatten(), expected.flatten(), dim=0))


def divergence(theta: Tensor, reference: Tensor) -> Tensor:
    """KL(π‖π_ref) of whole completions."""
    p, q = probabilities(theta), probabilities(reference.detach())
    return (p * (p / q).log()).sum()


def sequence_entropy(theta: Tensor) -> Tensor:
    p = probabilities(theta)
    return -(p * p.log()).sum()


THETA, REFERENCE = logits(0), logits(1).detach()
REF, _ = tables(REFERENCE)
TRUE = exact_gradient(THETA, lambda theta: divergence(theta, REFERENCE))

Estimator = Callable[[Tensor, Tensor, Tensor], Tensor]


def in_reward_by_sequence(estimator: Estimator) -> Callable[[Tensor, Tensor], Tensor]:
    """The penalty of a completion as its (negative) advantage."""

    def loss(logprobs: Tensor, _: Tensor) -> Tensor:
        total = torch.where(MASK, logprobs, 0.0).sum(1), torch.where(MASK, REF, 0.0).sum(1)
        alone = torch.ones(B, 1, dtype=torch.bool)
        penalty = estimator(total[0][:, None], total[1][:, None], alone)[:, 0].detach()
        return reinforce_loss(logprobs, MASK, -penalty, 1)

    return loss


def in_reward_by_token(estimator: Estimator) -> Callable[[Tensor, Tensor], Tensor]:
    def loss(logprobs: Tensor, _: Tensor) -> Tensor:
        penalty = estimator(logprobs.detach(), REF, MASK)
        return reinforce_loss(logprobs, MASK, returns_to_go(-penalty, MASK, 1.0), 1)

    return loss


def in_loss_by_sequence(estimator: Estimator) -> Callable[[Tensor, Tensor], Tensor]:
    def loss(logprobs: Tensor, _: Tensor) -> Tensor:
        total = torch.where(MASK, logprobs, 0.0).sum(1), torch.where(MASK, REF, 0.0).sum(1)
        alone = torch.ones(B, 1, dtype=torch.bool)
        return estimator(total[0][:, None], total[1][:, None], alone).sum()

    return loss


def k2_by_token(logprobs: Tensor, _: Tensor) -> Tensor:
    return k1(logprobs, REF, MASK).square().sum() / 2


def test_every_completion_is_there_once():
    assert B == 15
    assert len(PREFIXES) == 7
    assert float(probabilities(THETA.detach()).sum()) == pytest.approx(1, abs=1e-14)


@pytest.mark.parametrize("estimator", [k1, k3])
@pytest.mark.parametrize("seed", range(3))
def test_as_values_both_are_unbiased(estimator, seed):
    theta = logits(10 + seed).detach()
    logprobs, _ = tables(theta)
    value = (probabilities(theta) * estimator(logprobs, REF, MASK).sum(1)).sum()
    assert float(value) == pytest.approx(float(divergence(theta, REFERENCE)), rel=1e-13)
    off_policy = (probabilities(REFERENCE) * estimator(logprobs, REF, MASK).sum(1)).sum()
    assert abs(float(off_policy - value)) > 0.1


@pytest.mark.parametrize(
    "loss",
    [
        in_reward_by_sequence(k1),
        in_reward_by_token(k1),
        lambda logprobs, _: kl_squared_loss(logprobs, REF, MASK, 1),
    ],
    ids=["k1 in reward, sequence", "k1 in reward, token", "k2 in loss, sequence"],
)
@pytest.mark.parametrize("seed", range(3))
def test_these_are_the_gradient_of_the_kl_exactly(loss, seed):
    theta = logits(20 + seed)
    true = exact_gradient(theta, lambda t: divergence(t, REFERENCE))
    actual = expected_gradient(theta, loss)
    assert residual(actual, true) < EXACT
    assert float(actual.norm() / true.norm()) == pytest.approx(1, abs=EXACT)


def test_k1_in_the_loss_has_no_gradient_in_expectation():
    actual = expected_gradient(THETA, lambda logprobs, _: k1(logprobs, REF, MASK).sum())
    assert float(actual.norm() / TRUE.norm()) < EXACT
    one_sample = token_weights(lambda lp, _: k1(lp, REF, MASK).sum(), REF, REF).logprobs
    assert one_sample[MASK].eq(1).all()  # what it does to one sample is to make it less likely


@pytest.mark.parametrize(
    ("loss", "limit"),
    [
        (lambda logprobs, _: grpo_k3_loss(logprobs, REF, MASK, 1), 0.7),
        (in_loss_by_sequence(k3), 0.7),
        (in_reward_by_token(k3), 0.99),
        (in_reward_by_sequence(k3), 0.99),
        (k2_by_token, 0.999),
    ],
    ids=[
        "k3 in loss, token",
        "k3 in loss, sequence",
        "k3 in reward, token",
        "k3 in reward, sequence",
        "k2 in loss, token",
    ],
)
def test_these_are_not_the_gradient_of_the_kl(loss, limit, record_property):
    actual = expected_gradient(THETA, loss)
    record_property("cosine", cosine(actual, TRUE))
    record_property("residual", residual(actual, TRUE))
    assert cosine(actual, TRUE) < limit
    assert residual(actual, TRUE) > 0.05


def test_k3_in_the_loss_follows_the_reverse_divergence_of_the_next_token():
    """Σ_s π(s) ∇ KL(π_ref(·|s)‖π(·|s)) over prefixes s, with π(s) held constant."""
    logprobs = torch.log_softmax(THETA, -1)
    reference = torch.log_softmax(REFERENCE, -1)
    reverse = (reference.exp() * (reference - logprobs)).sum(-1)  # [prefixes]
    met = torch.stack(
        [probabilities(THETA)[(MASK & (s == STATES)).any(1)].sum() for s in range(len(PREFIXES))]
    )
    (expected,) = torch.autograd.grad((met.detach() * reverse).sum(), THETA)
    actual = expected_gradient(THETA, lambda lp, _: grpo_k3_loss(lp, REF, MASK, 1))
    assert residual(actual, expected) < EXACT


def test_k3_in_the_loss_points_along_the_kl_only_near_the_reference(record_property):
    cosines = []
    for distance in (0.1, 1.0, 3.0):
        theta = (REFERENCE + distance * logits(0).detach()).requires_grad_()
        true = exact_gradient(theta, lambda t: divergence(t, REFERENCE))
        actual = expected_gradient(theta, lambda lp, _: grpo_k3_loss(lp, REF, MASK, 1))
        cosines.append(cosine(actual, true))
        record_property(f"cosine at distance {distance}", cosines[-1])
    assert cosines[0] > 0.99
    assert cosines[0] > cosines[1] > cosines[2]
    assert cosines[2] < 0.9


@pytest.mark.parametrize("seed", range(3))
def test_k3_in_loss_and_in_reward_lack_each_other(seed):
    """∇ E_π[k3] = E[∇ k3] + E[k3 ∇ log π]: each is one of the two terms of the gradient."""
    theta = logits(40 + seed)
    true = exact_gradient(theta, lambda t: divergence(t, REFERENCE))
    in_loss = expected_gradient(theta, lambda lp, _: grpo_k3_loss(lp, REF, MASK, 1))
    in_reward = expected_gradient(theta, in_reward_by_token(k3))
    assert residual(in_loss + in_reward, true) < EXACT
    assert residual(in_loss, true) > 0.05


def test_a_discount_makes_it_another_gradient():
    def loss(logprobs: Tensor, _: Tensor) -> Tensor:
        penalty = k1(logprobs.detach(), REF, MASK)
        return reinforce_loss(logprobs, MASK, returns_to_go(-penalty, MASK, 0.9), 1)

    assert residual(expected_gradient(THETA, loss), TRUE) > 1e-3


def later_entropies(logprobs: Tensor, entropies: Tensor) -> Tensor:
    to_go = returns_to_go(after_each_token(entropies.detach(), MASK), MASK, 1.0)
    return reinforce_loss(logprobs, MASK, to_go, 1)


def direct(_: Tensor, entropies: Tensor) -> Tensor:
    return entropy_loss(entropies, MASK, 1)


@pytest.mark.parametrize("seed", range(3))
def test_later_entropies_as_reward_and_the_direct_term_are_the_sequence_entropy(seed):
    theta = logits(30 + seed)
    true = exact_gradient(theta, sequence_entropy)
    actual = expected_gradient(theta, lambda lp, h: later_entropies(lp, h) + direct(lp, h))
    assert residual(-actual, true) < EXACT
    assert float(actual.norm() / true.norm()) == pytest.approx(1, abs=EXACT)


def test_either_term_of_the_entropy_alone_is_not_its_gradient(record_property):
    true = exact_gradient(THETA, sequence_entropy)
    for name, loss in (("direct", direct), ("later", later_entropies)):
        actual = -expected_gradient(THETA, loss)
        record_property(f"{name}: cosine", cosine(actual, true))
        record_property(f"{name}: residual", residual(actual, true))
        assert cosine(actual, true) < 0.99


def test_the_entropy_a_token_was_drawn_with_adds_noise_and_no_gradient():
    """It was settled before the token: a baseline in disguise. The entropy after it is not."""

    def own(logprobs: Tensor, entropies: Tensor) -> Tensor:
        only = torch.where(MASK, entropies, 0.0).detach()
        return reinforce_loss(logprobs, MASK, only, 1)

    def entropy_after(logprobs: Tensor, entropies: Tensor) -> Tensor:
        return reinforce_loss(logprobs, MASK, after_each_token(entropies.detach(), MASK), 1)

    assert float(expected_gradient(THETA, own).norm()) < EXACT
    assert float(expected_gradient(THETA, entropy_after).norm()) > 1e-2


@pytest.mark.parametrize("by_token", [False, True])
def test_the_ratio_of_the_sequence_corrects_for_another_sampler(by_token):
    """E_old[∇ clipped_loss] with no clip = -∇ E_π[Σ r], on samples of a policy that is not π."""
    old = logits(5).detach()
    old_logprobs, _ = tables(old)
    generator = torch.Generator().manual_seed(6)
    rewards = torch.randn(B, T, generator=generator, dtype=torch.float64)
    # Token rewards must be the same for the same beginning, or they would know the future.
    rewards = rewards.view(-1)[(STATES * V + TOKENS)]
    total = torch.where(MASK, rewards, 0.0).sum(1)
    advantages = returns_to_go(rewards, MASK, 1.0) if by_token else total
    true = exact_gradient(THETA, lambda theta: (probabilities(theta) * total).sum())

    def corrected(logprobs: Tensor, _: Tensor) -> Tensor:
        return clipped_loss(logprobs, old_logprobs, MASK, advantages, 1, math.inf)

    def clipped(logprobs: Tensor, _: Tensor) -> Tensor:
        return clipped_loss(logprobs, old_logprobs, MASK, advantages, 1, 0.2)

    def uncorrected(logprobs: Tensor, _: Tensor) -> Tensor:
        return reinforce_loss(logprobs, MASK, advantages, 1)

    assert residual(-expected_gradient(THETA, corrected, old), true) < EXACT
    assert residual(-expected_gradient(THETA, clipped, old), true) > 0.05
    assert residual(-expected_gradient(THETA, uncorrected, old), true) > 0.05


def test_k3_is_never_negative_and_keeps_its_digits_near_zero():
    """k3 = d²/2 - … for a small log-ratio d; exp(d) - 1 - d has no correct digit left."""
    d = torch.tensor([[1e-9, -1e-9, 0.0, 2.0, -2.0]], dtype=torch.float64)
    everything = torch.ones_like(d, dtype=torch.bool)
    values = k3(-d, torch.zeros_like(d), everything)
    expected = [5e-19, 5e-19, 0.0, math.exp(2) - 3, math.exp(-2) + 1]
    assert values[0].tolist() == pytest.approx(expected, rel=1e-6, abs=0)
    naive = d.exp() - 1 - d
    assert abs(float(naive[0, 0]) - 5e-19) > 5e-19
    assert k1(-d, torch.zeros_like(d), everything).min() < 0


@pytest.mark.parametrize("estimator", [k1, k3])
def test_outside_the_mask_the_estimate_and_its_gradient_are_zero(estimator):
    logprobs = torch.tensor([[-1.0, math.nan, -math.inf]], requires_grad=True)
    reference = torch.tensor([[-2.0, math.nan, math.nan]])
    mask = torch.tensor([[True, False, False]])
    values = estimator(logprobs, reference, mask)
    (gradient,) = torch.autograd.grad(values.sum(), logprobs)
    assert values[0, 0] > 0
    assert gradient[0, 0] > 0
    assert values[0, 1:].tolist() == [0, 0]
    assert gradient[0, 1:].tolist() == [0, 0]


@pytest.mark.parametrize("estimator", [k1, k3])
def test_tables_that_do_not_belong_together_are_refused(estimator):
    with pytest.raises(ValueError, match=r"reference \(2, 1\) and mask \(2, 3\) must all be"):
        estimator(torch.zeros(2, 3), torch.zeros(2, 1), torch.ones(2, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"must all be \[B, T\]"):
        estimator(torch.zeros(3), torch.zeros(3), torch.ones(3, dtype=torch.bool))
