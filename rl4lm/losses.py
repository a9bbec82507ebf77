"""Losses: functions of per-token log-probabilities, and the weights that they give.

A loss is ``(logprobs [B, T], mask [B, T], …) -> scalar``. The trainer differentiates it on a small
detached leaf; the resulting ``∂L/∂logprob`` is all that the head and the backbone need to know.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


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
    if logprobs.shape != mask.shape or logprobs.dim() != 2:
        raise ValueError(
            f"logprobs {tuple(logprobs.shape)} and mask {tuple(mask.shape)} must both be [B, T]"
        )
    if advantages.shape not in (logprobs.shape, logprobs.shape[:1]):
        raise ValueError(
            f"advantages {tuple(advantages.shape)} must be [B] or [B, T] with "
            f"[B, T] = {tuple(logprobs.shape)}"
        )
    if num_completions < 1:
        raise ValueError(f"num_completions must be at least 1, got {num_completions}")
    per_token = advantages if advantages.dim() == 2 else advantages[:, None]
    # where, not a product: a masked log-prob may be nan and 0 · nan is nan.
    return -torch.where(mask, per_token * logprobs, 0.0).sum() / num_completions


def logprob_weights(loss: Callable[[Tensor], Tensor], logprobs: Tensor) -> Tensor:
    """∂L/∂logprob [B, T] of a loss, taken on a detached leaf holding `logprobs` [B, T]."""
    leaf = logprobs.detach().clone().requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(loss(leaf), leaf)
    return gradient
