"""Per-token estimators of KL(π‖π_ref) from samples of π.

Schulman, "Approximating KL divergence" (2020, http://joschu.net/blog/kl-approx.html). With
``Δ_t = log π(o_t|q, o_<t) - log π_ref(o_t|q, o_<t)`` on tokens drawn from π, the expectation of
either estimator is ``KL(π(·|q, o_<t) ‖ π_ref(·|q, o_<t))``, and its sum over the tokens of a
completion has the expectation ``KL(π(·|q) ‖ π_ref(·|q))`` of the whole sequence.

An unbiased *value* is one thing, an unbiased *gradient* another: the samples depend on π too, and
differentiating an estimate on given samples leaves that out. So k1 belongs into the reward, where
the score function supplies what is missing; in a loss use `rl4lm.estimator.losses.kl_squared_loss`.
"""

from __future__ import annotations

import torch
from torch import Tensor


def k1(logprobs: Tensor, reference: Tensor, mask: Tensor) -> Tensor:
    """The log-ratio: unbiased, of either sign.

        k1_t = log π_t - log π_ref,t

    As a value: unbiased. As a reward ``-β k1`` (held constant; per sequence, or per token with
    returns-to-go at γ = 1): the expected gradient is exactly that of ``-β KL``. In a loss: the
    expected gradient is ``E[∇ log π] = 0``, exactly, so that it is noise and no pull at all.

    Args:
        logprobs: [B, T], log π of the sampled tokens.
        reference: [B, T], log π_ref of the same tokens.
        mask: bool [B, T], True on every sampled token; nothing outside it is read.

    Returns:
        [B, T], in nats, 0 outside the mask.

    Raises:
        ValueError: shapes that do not fit.
    """
    _check(logprobs, reference, mask)
    return torch.where(mask, logprobs - reference, 0.0)


def k3(logprobs: Tensor, reference: Tensor, mask: Tensor) -> Tensor:
    """The log-ratio with a control variate: unbiased, never negative, usually less noisy.

        k3_t = (π_ref,t / π_t) - 1 - log(π_ref,t / π_t)

    As a value: unbiased, so report this one. In the loss it is **not** the gradient of the KL: on
    tokens from π, ``E[∇k3]`` is the gradient of ``KL(π_ref‖π)`` of the next token, the reverse
    divergence. As a reward it isn't either, but what the other one lacks: the two add up to
    ``∇ E[k3]``, the gradient of the KL.

    Args:
        logprobs: [B, T], log π of the sampled tokens.
        reference: [B, T], log π_ref of the same tokens.
        mask: bool [B, T], True on every sampled token; nothing outside it is read.

    Returns:
        [B, T], in nats, at least 0, and 0 outside the mask.

    Raises:
        ValueError: shapes that do not fit.
    """
    # Masked before expm1, not after: the derivative of what where() drops is 0 · nan.
    log_ratio = -k1(logprobs, reference, mask)
    # expm1, because near 0 the exponential less one has no digits left.
    return torch.expm1(log_ratio) - log_ratio


def _check(logprobs: Tensor, reference: Tensor, mask: Tensor) -> None:
    if not logprobs.shape == reference.shape == mask.shape or mask.dim() != 2:
        raise ValueError(
            f"logprobs {tuple(logprobs.shape)}, reference {tuple(reference.shape)} and mask "
            f"{tuple(mask.shape)} must all be [B, T]"
        )
