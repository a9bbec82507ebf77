"""Importance sampling: how a completion that another policy drew counts, and where a clip ends it.

The other policy is the one that sampled: this one before its last updates, or a server's.
"""

from __future__ import annotations

from torch import Tensor

from rl4lm.estimator.kl import k1


def importance_ratio(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor) -> Tensor:
    """How much likelier a completion is now than when it was sampled.

        ρ_i = π(o_i|q_i) / π_old(o_i|q_i) = exp Σ_t (log π_{i,t} - log π_old,{i,t})

    Of the whole sequence, because the sample is the sequence: ``E_old[ρ f(o)] = E_π[f(o)]`` is
    exact, which it is not with the ratios of single tokens.

    Args:
        logprobs: [B, T], log π of the sampled tokens now.
        old_logprobs: [B, T], log π of the same tokens when they were sampled.
        mask: bool [B, T], True on every sampled token.

    Returns:
        ρ [B]. It overflows to inf where the log-ratio passes 88 in float32, 709 in float64.

    Raises:
        ValueError: shapes that do not fit.
    """
    return k1(logprobs, old_logprobs, mask).sum(dim=1).exp()


def clipped_tokens(
    ratio: Tensor, advantages: Tensor, mask: Tensor, epsilon: float
) -> tuple[Tensor, Tensor]:
    """(low, high), bool [B, T]: the sampled tokens whose pull away from ratio 1 has ended."""
    if not epsilon >= 0.0:
        raise ValueError(f"epsilon must be at least 0, got {epsilon}")
    if mask.dim() != 2 or ratio.shape != mask.shape[:1]:
        raise ValueError(
            f"ratio {tuple(ratio.shape)} must be [B] with mask [B, T] = {tuple(mask.shape)}"
        )
    pulls = per_token(advantages, mask)
    low = mask & (pulls < 0.0) & (ratio < 1.0 - epsilon)[:, None]
    high = mask & (pulls > 0.0) & (ratio > 1.0 + epsilon)[:, None]
    return low, high


def clipped_completions(
    ratio: Tensor, advantages: Tensor, mask: Tensor, epsilon: float
) -> tuple[Tensor, Tensor]:
    """Which completions `rl4lm.estimator.losses.clipped_loss` clips, and on which side.

    Args:
        ratio: ρ [B], of `importance_ratio`.
        advantages: [B] or [B, T], as in that loss.
        mask: bool [B, T], True on every sampled token.
        epsilon: ε >= 0.

    Returns:
        (low, high), bool [B] each: low where any sampled token has A < 0 and ρ < 1 - ε, high where
        any has A > 0 and ρ > 1 + ε. Sum them over processes and divide by N for the shares; with
        advantages of both signs in one completion only one side can be clipped, ρ being one.

    Raises:
        ValueError: shapes that do not fit, or ε < 0.
    """
    low, high = clipped_tokens(ratio, advantages, mask, epsilon)
    return low.any(dim=1), high.any(dim=1)


def per_token(advantages: Tensor, mask: Tensor) -> Tensor:
    """Advantages [B] or [B, T] as [B, 1] or [B, T]."""
    if advantages.shape not in (mask.shape, mask.shape[:1]):
        raise ValueError(
            f"advantages {tuple(advantages.shape)} must be [B] or [B, T] with "
            f"[B, T] = {tuple(mask.shape)}"
        )
    return advantages if advantages.dim() == 2 else advantages[:, None]
