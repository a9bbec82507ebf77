"""Losses: functions of per-token log-probabilities, and the weights that they give.

A loss is ``(logprobs [B, T], mask [B, T], …) -> scalar``, or takes the entropies [B, T] of the
distributions that the tokens were drawn from. The trainer differentiates it on small detached
leaves; ``∂L/∂logprob`` and ``∂L/∂entropy`` are all that the head and the backbone need to know.

Nothing outside the mask matters, nan included: sums use ``where``, because 0 · nan is nan. ``N``
is everywhere the completions of the whole step, over all micro-batches and all processes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rl4lm.estimator.importance import clipped_tokens, importance_ratio, per_token
from rl4lm.estimator.kl import k1, k3


def reinforce_loss(
    logprobs: Tensor, mask: Tensor, advantages: Tensor, num_completions: int
) -> Tensor:
    """The REINFORCE surrogate of one optimizer step.

        L = -(1/N) Σ_i Σ_t A_{i,t} log π(o_{i,t} | q_i, o_{i,<t})

    With ``A_{i,t} = A_i`` the inner sum is ``A_i · log π(o_i|q_i)``: a sum over tokens, never a
    mean. Its gradient is an unbiased estimate of ``-∇ E[r]`` where A_i is the reward less a
    baseline that does not depend on the sample i (Williams, "Simple statistical gradient-following
    algorithms for connectionist reinforcement learning", 1992).

    Args:
        logprobs: [B, T], log π of the sampled tokens.
        mask: bool [B, T], True on every sampled token, the end token included.
        advantages: [B], one per completion, or [B, T], one per token; constants.
        num_completions: N, the completions of the whole step over all micro-batches and all
            processes, those with zero advantage included.

    Returns:
        The scalar L. It is linear in `logprobs`; its value means nothing by itself.

    Raises:
        ValueError: shapes that do not fit, or N < 1.
    """
    _check(mask, num_completions, logprobs=logprobs)
    # where, not a product: a masked log-prob may be nan and 0 · nan is nan.
    weighted = torch.where(mask, per_token(advantages, mask) * logprobs, 0.0)
    return -weighted.sum() / num_completions


def clipped_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    mask: Tensor,
    advantages: Tensor,
    num_completions: int,
    epsilon: float,
) -> Tensor:
    """The surrogate for several steps on one rollout: sequence ratio, pessimistic clip.

        L = -(1/N) Σ_i ρ_i Σ_t c_{i,t} A_{i,t} log π_{i,t},   ρ held constant

    where c_{i,t} is 0 if A_{i,t} > 0 and ρ_i > 1 + ε, or A_{i,t} < 0 and ρ_i < 1 - ε, else 1. With
    one advantage per completion the gradient is that of PPO's ``-(1/N) Σ_i min(ρ_i A_i,
    clip(ρ_i, 1 - ε, 1 + ε) A_i)``, since ``∇ρ = ρ ∇ log π`` (Schulman et al., "Proximal policy
    optimization algorithms", 2017; with the ratio of the sequence, not of the token). With one per
    token, unclipped, it is the importance-weighted gradient with returns-to-go. The value of L is
    not that of the minimum and means nothing by itself.

    The clip is one-sided: a completion with A < 0 that has become likelier keeps its full ratio as
    weight, however large; where that overflows the weight is -A · inf, which the caller's check
    for finite gradients refuses. A clipped or zero advantage weighs exactly 0 whatever the ratio.

    Args:
        logprobs: [B, T], log π of the sampled tokens now.
        old_logprobs: [B, T], log π of the same tokens when they were sampled.
        mask: bool [B, T], True on every sampled token.
        advantages: [B], one per completion, or [B, T], one per token; constants.
        num_completions: N, the completions of the whole step.
        epsilon: ε >= 0, how far the ratio may leave 1 before the pull away from 1 ends.

    Returns:
        The scalar L. At ``logprobs == old_logprobs`` its gradient is that of `reinforce_loss`.

    Raises:
        ValueError: shapes that do not fit, N < 1, or ε < 0.
    """
    _check(mask, num_completions, logprobs=logprobs, old_logprobs=old_logprobs)
    ratio = importance_ratio(logprobs.detach(), old_logprobs, mask)
    low, high = clipped_tokens(ratio, advantages, mask, epsilon)
    pulls = per_token(advantages, mask)
    live = mask & ~low & ~high & pulls.ne(0.0)
    # Chosen, not multiplied by 0: what is dropped may be inf or nan.
    weights = torch.where(live, ratio[:, None] * pulls, 0.0)
    return reinforce_loss(logprobs, mask, weights, num_completions)


def kl_squared_loss(
    logprobs: Tensor,
    reference: Tensor,
    mask: Tensor,
    num_completions: int,
    weights: Tensor | float = 1.0,
) -> Tensor:
    """KL(π‖π_ref) for the loss: k2, half the square of the sequence's log-ratio.

        L = (1/N) Σ_i w_i ½ (Σ_t (log π_{i,t} - log π_ref,{i,t}))²

    On completions from π its expected gradient is exactly ``∇ KL(π(·|q)‖π_ref(·|q))``, because
    ``E[Δ ∇ log π]`` is what the score function of the KL comes to. Its value is not the KL. The
    square is that of the sum: a sum of squares by token leaves out how a token changes the
    divergence of those after it.

    Args:
        logprobs: [B, T], log π of the sampled tokens.
        reference: [B, T], log π_ref of the same tokens; constants.
        mask: bool [B, T], True on every sampled token.
        num_completions: N, the completions of the whole step.
        weights: w [B], what each completion counts, or one number for all.

    Returns:
        The scalar L, in nats squared.

    Raises:
        ValueError: shapes that do not fit, or N < 1.
    """
    _check(mask, num_completions, logprobs=logprobs, reference=reference)
    log_ratio = k1(logprobs, reference, mask).sum(dim=1)  # [B]
    return (weights * log_ratio.square()).sum() / (2 * num_completions)


def grpo_k3_loss(
    logprobs: Tensor,
    reference: Tensor,
    mask: Tensor,
    num_completions: int,
    weights: Tensor | float = 1.0,
) -> Tensor:
    """The KL term of GRPO: k3 of each token, differentiated as it stands.

        L = (1/N) Σ_i w_i Σ_t (π_ref/π - 1 - log(π_ref/π))_{i,t}

    Its value is an unbiased estimate of KL(π‖π_ref); its gradient is **not** that of the KL. In
    expectation it pulls each next-token distribution along ``∇ KL(π_ref‖π)``, and leaves out how
    the tokens change which prefixes are met. The two agree to first order at the reference and
    part with the distance from it, so it fails where it is needed (tests/test_kl.py enumerates
    it). Offered to reproduce GRPO (Shao et al., "DeepSeekMath", 2024); to follow the KL use
    `kl_squared_loss`.

    Args:
        logprobs: [B, T], log π of the sampled tokens.
        reference: [B, T], log π_ref of the same tokens; constants.
        mask: bool [B, T], True on every sampled token.
        num_completions: N, the completions of the whole step.
        weights: w [B], what each completion counts, or one number for all.

    Returns:
        The scalar L, in nats.

    Raises:
        ValueError: shapes that do not fit, or N < 1.
    """
    _check(mask, num_completions, logprobs=logprobs, reference=reference)
    return (weights * k3(logprobs, reference, mask).sum(dim=1)).sum() / num_completions


def entropy_loss(
    entropies: Tensor, mask: Tensor, num_completions: int, weights: Tensor | float = 1.0
) -> Tensor:
    """The entropies of the next-token distributions, to be raised.

        L = -(1/N) Σ_i w_i Σ_t H_{i,t}

    Alone it is a regulariser and not the gradient of the sequence entropy ``H(π(·|q)) =
    E[Σ_t H_t]``, because it leaves out how the tokens change which prefixes are met. That other
    term is the reward-to-go ``Σ_{k>t} H_k`` of each token (`returns.after_each_token`); the two
    together are exact.

    Args:
        entropies: [B, T], H of the distribution that each token was drawn from.
        mask: bool [B, T], True on every sampled token.
        num_completions: N, the completions of the whole step.
        weights: w [B], what each completion counts, or one number for all.

    Returns:
        The scalar L, in nats.

    Raises:
        ValueError: shapes that do not fit, or N < 1.
    """
    _check(mask, num_completions, entropies=entropies)
    return -(weights * torch.where(mask, entropies, 0.0).sum(dim=1)).sum() / num_completions


@dataclass(frozen=True)
class TokenWeights:
    """The derivative of a loss by what the head computes of each token."""

    logprobs: Tensor  # [B, T], ∂L/∂log π
    entropies: Tensor  # [B, T], ∂L/∂H


def token_weights(
    loss: Callable[[Tensor, Tensor], Tensor], logprobs: Tensor, entropies: Tensor
) -> TokenWeights:
    """∂L/∂log π and ∂L/∂H of a loss, taken on two small detached leaves.

    Args:
        loss: (logprobs [B, T], entropies [B, T]) -> scalar L; it may leave one of them unused.
        logprobs: [B, T], where the derivative is taken.
        entropies: [B, T], likewise.

    Returns:
        The weights, without a graph; zeros for what the loss does not use.
    """
    leaves = [table.detach().clone().requires_grad_() for table in (logprobs, entropies)]
    with torch.enable_grad():
        value = loss(*leaves)
    return TokenWeights(
        *torch.autograd.grad(value, leaves, allow_unused=True, materialize_grads=True)
    )


def _check(mask: Tensor, num_completions: int, **tables: Tensor) -> None:
    for name, table in tables.items():
        if table.shape != mask.shape or table.dim() != 2:
            raise ValueError(
                f"{name} {tuple(table.shape)} and mask {tuple(mask.shape)} must both be [B, T]"
            )
    if num_completions < 1:
        raise ValueError(f"num_completions must be at least 1, got {num_completions}")
