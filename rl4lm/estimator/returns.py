"""Returns: what each token is answerable for, where rewards are paid token by token.

Pure functions of tensors. A token is answerable for what comes after it and for nothing before, so
its weight in the gradient is the sum of the rewards from it on. Values outside the mask are never
read: they may be anything, nan included.
"""

from __future__ import annotations

import torch
from torch import Tensor


def returns_to_go(rewards: Tensor, mask: Tensor, gamma: float) -> Tensor:
    """The discounted sum of the rewards from each token on.

        G_t = Σ_{k≥t} γ^{k-t} r_k

    With γ = 1 the sum is that of the reward-to-go policy gradient, whose expectation is the exact
    gradient of ``E[Σ_t r_t]``; with γ < 1 it is that of another, short-sighted objective (Sutton
    and Barto, "Reinforcement learning", 2018, sections 3.3 and 13.3). A reward that stands at the
    last token alone reaches every token unchanged, bit for bit, where γ = 1.

    Args:
        rewards: [B, T], paid when the token at that place has been chosen.
        mask: bool [B, T], True on every sampled token.
        gamma: γ, the discount of one token, in [0, 1].

    Returns:
        G [B, T], 0 outside the mask.

    Raises:
        ValueError: shapes that do not fit, or γ outside [0, 1].
    """
    _check("rewards", rewards, mask.shape, mask)
    if not 0.0 <= gamma <= 1.0:
        raise ValueError(f"gamma must be between 0 and 1, got {gamma}")
    paid = torch.where(mask, rewards, 0.0)
    returns = torch.zeros_like(paid)
    following = paid.new_zeros(len(paid))  # [B], G of the token to the right
    for t in reversed(range(paid.shape[1])):
        following = paid[:, t] + gamma * following
        returns[:, t] = following
    return torch.where(mask, returns, 0.0)


def at_last_token(values: Tensor, mask: Tensor) -> Tensor:
    """A quantity of the whole completion as one of its last token: [B] -> [B, T].

    The reward of a sequence is paid when the sequence is complete; written this way it can be
    added to rewards that are paid on the way.

    Args:
        values: [B], one per completion.
        mask: bool [B, T], True on every sampled token.

    Returns:
        [B, T], the value at the last sampled token, 0 elsewhere; all 0 for an empty completion.

    Raises:
        ValueError: shapes that do not fit.
    """
    _check("values", values, mask.shape[:1], mask)
    tokens_from_here = mask.flip(1).cumsum(dim=1).flip(1)  # int64 [B, T]
    return torch.where(mask & (tokens_from_here == 1), values[:, None], 0.0)


def after_each_token(values: Tensor, mask: Tensor) -> Tensor:
    """What stands at the next token, moved to the token before it.

    For quantities of the distribution that a token is drawn from, such as its entropy: the one at
    t + 1 is a consequence of the token chosen at t, whereas the one at t was settled before that
    token was drawn and must not be credited to it.

    Args:
        values: [B, T], one per sampled token.
        mask: bool [B, T], True on every sampled token.

    Returns:
        [B, T]: at t the value at t + 1, and 0 at the last token of each completion and outside
        the mask.

    Raises:
        ValueError: shapes that do not fit.
    """
    _check("values", values, mask.shape, mask)
    moved = torch.zeros_like(values)
    moved[:, :-1] = torch.where(mask[:, :-1] & mask[:, 1:], values[:, 1:], 0.0)
    return moved


def _check(name: str, values: Tensor, expected: torch.Size, mask: Tensor) -> None:
    if mask.dim() != 2:
        raise ValueError(f"mask {tuple(mask.shape)} must be [B, T]")
    if values.shape != expected:
        raise ValueError(
            f"{name} {tuple(values.shape)} must be {tuple(expected)} "
            f"with mask [B, T] = {tuple(mask.shape)}"
        )
