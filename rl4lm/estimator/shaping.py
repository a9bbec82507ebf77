"""What other toolkits do to advantages and completions after the baseline, each by TRL's name.

A step of this project multiplies nothing: A_i = r_i - b_i, and every completion counts once. What
is here multiplies, by numbers that are constants of the step:

    L = -(1/N) Σ_i w_i (A_i / s_i) Σ_t log π_{i,t}        (the terms that do not go through the
                                                            reward have w_i too, and not s_i)

s_i is a standard deviation of rewards (`scale_rewards`), w_i a function of lengths (`loss_type`)
and of what was cut off (`mask_truncated_completions`). Both are computed over the *global* step in
float64, so that neither micro-batches nor processes can change them. All but ``dr_grpo``, which
divides by a constant, follow another objective than E[r] (`rl4lm verify` says how far off).

Leading batch axes are allowed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from rl4lm.estimator.baselines import advantages

EPSILON = 1e-4  # that TRL adds to a standard deviation, in units of reward

Spread = Callable[[Tensor, Tensor], Tensor]  # (returns, valid [..., P, G]) -> s [..., P, G]
Weighting = Callable[[Tensor, Tensor, int], Tensor]  # (lengths, kept, longest) -> w [..., P, G]


@dataclass(frozen=True)
class Shaping:
    """How the completions of a step are scaled and weighed."""

    spread: Spread
    weighting: Weighting
    mask_truncated: bool
    longest: int  # max_completion_length

    def scales(self, returns: Tensor, valid: Tensor) -> Tensor:
        """s, what the advantages are divided by: float64 [..., P, G].

        Args:
            returns: float64 [..., P, G], what the baseline saw of each completion.
            valid: bool [..., P, G], False where no reward applied.
        """
        return self.spread(returns, valid)

    def weights(self, lengths: Tensor, ended: Tensor) -> Tensor:
        """w, what each completion counts: float64 [..., P, G].

        Args:
            lengths: [..., P, G], sampled tokens of each completion.
            ended: bool [..., P, G], False where the length limit cut the completion off.
        """
        kept = ended | torch.tensor(not self.mask_truncated)
        return torch.where(kept, self.weighting(lengths.double(), kept, self.longest), 0.0)


def shaped_advantages(
    returns: Tensor, baseline: Tensor, factors: Tensor, valid: Tensor, mask: Tensor
) -> Tensor:
    """A = (return - b) · w/s, 0 where no reward applied.

    Args:
        returns: [B], or [B, T] where tokens are paid one by one.
        baseline: [B].
        factors: w/s [B].
        valid: bool [B], False where no reward applied.
        mask: bool [B, T], True on every sampled token.
    """
    if returns.dim() == 1:
        return factors * advantages(returns, baseline, valid)
    return factors[:, None] * advantages(returns, baseline[:, None], valid[:, None] & mask)


def no_spread(returns: Tensor, valid: Tensor) -> Tensor:
    """s = 1: advantages in units of reward, as the gradient of E[r] has them."""
    return torch.ones_like(returns)


def group_spread(returns: Tensor, valid: Tensor) -> Tensor:
    """s = std of the prompt's rewards + 1e-4, with Bessel's correction.

    GRPO: Shao et al., "DeepSeekMath" (2024). It weighs a prompt the more the less its rewards
    differ: with rewards of 0 and 1 the rare right answer of a hard prompt, and the rare wrong one
    of an easy prompt, most of all (Liu et al., "Understanding R1-Zero-like training", 2025).
    """
    return _deviation(returns, valid, dims=(-1,)) + EPSILON


def batch_spread(returns: Tensor, valid: Tensor) -> Tensor:
    """s = std of all rewards of the step + 1e-4, with Bessel's correction: one s for all."""
    return _deviation(returns, valid, dims=(-2, -1)) + EPSILON


SPREADS: Mapping[str, Spread] = {
    "none": no_spread,
    "group": group_spread,
    "batch": batch_spread,
}


def per_completion(lengths: Tensor, kept: Tensor, longest: int) -> Tensor:
    """w = 1: log π of the completion, which is a sum over its tokens. REINFORCE."""
    return torch.ones_like(lengths)


def mean_over_tokens(lengths: Tensor, kept: Tensor, longest: int) -> Tensor:
    """w = 1/l: the mean over a completion's tokens, as GRPO has it.

    Among right answers it pulls short ones up more, among wrong ones it pushes long ones down less.
    """
    return 1.0 / lengths


def constant_length(lengths: Tensor, kept: Tensor, longest: int) -> Tensor:
    """w = 1/max_completion_length, as Dr. GRPO has it: REINFORCE at another learning rate."""
    return torch.full_like(lengths, 1.0 / longest)


def mean_over_all_tokens(lengths: Tensor, kept: Tensor, longest: int) -> Tensor:
    """w = N / Σ l over the kept completions of the step, as DAPO has it: the mean over all tokens.

    The divisor is itself drawn with the completions, so that long steps count less.
    """
    tokens = torch.where(kept, lengths, 0.0).sum(dim=(-2, -1), keepdim=True).clamp(min=1.0)
    return (lengths.shape[-2] * lengths.shape[-1] / tokens).expand_as(lengths)


WEIGHTINGS: Mapping[str, Weighting] = {
    "reinforce": per_completion,
    "grpo": mean_over_tokens,
    "dr_grpo": constant_length,
    "dapo": mean_over_all_tokens,
}


def _deviation(returns: Tensor, valid: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Standard deviation of the valid returns over some axes, 0 where fewer than 2 are valid."""
    count = valid.sum(dim=dims, keepdim=True)
    mean = torch.where(valid, returns, 0.0).sum(dim=dims, keepdim=True) / count.clamp(min=1)
    squares = torch.where(valid, returns - mean, 0.0).square().sum(dim=dims, keepdim=True)
    return (squares / (count - 1).clamp(min=1)).sqrt().expand_as(returns)
