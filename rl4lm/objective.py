"""The loss of a step as a sum of terms, each a function of log-probs and entropies.

Which terms there are is decided once, from the options. Each is a pure function of
`rl4lm.estimator.losses` with the constants of the experience filled in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from rl4lm.config import ReinforceConfig
from rl4lm.estimator.losses import (
    clipped_loss,
    entropy_loss,
    grpo_k3_loss,
    kl_squared_loss,
    reinforce_loss,
)
from rl4lm.estimator.shaping import SPREADS, WEIGHTINGS, Shaping
from rl4lm.types import Experience

# (experience, log-probs [B, T], entropies [B, T]) -> scalar
Term = Callable[[Experience, Tensor, Tensor], Tensor]


def loss_terms(config: ReinforceConfig) -> list[Term]:
    """The terms of the loss: the advantages' first, then those that act whatever was earned."""
    epsilon = config.resolved_epsilon
    return [reinforce if epsilon is None else clipped(epsilon), *direct_terms(config)]


def direct_terms(config: ReinforceConfig) -> list[Term]:
    """The terms that do not go through the reward: KL in the loss, and the entropy's own slope."""
    terms = []
    if config.beta and config.kl_in == "loss":
        terms.append(kl_squared(config.beta))
    if config.beta and config.kl_in == "grpo_k3":
        terms.append(grpo_k3(config.beta))
    if config.entropy_coef:
        terms.append(entropy(config.entropy_coef))
    return terms


def shaping_of(config: ReinforceConfig) -> Shaping:
    """What advantages and completions are multiplied by."""
    return Shaping(
        spread=SPREADS[config.scale_rewards],
        weighting=WEIGHTINGS[config.loss_type],
        mask_truncated=config.mask_truncated_completions,
        longest=config.max_completion_length,
    )


def total(terms: Sequence[Term], experience: Experience) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss of an experience as a function of log-probs and entropies alone."""

    def loss(logprobs: Tensor, entropies: Tensor) -> Tensor:
        first, *others = (term(experience, logprobs, entropies) for term in terms)
        return sum(others, start=first)

    return loss


def reinforce(e: Experience, logprobs: Tensor, entropies: Tensor) -> Tensor:
    """`reinforce_loss` of the advantages."""
    return reinforce_loss(logprobs, e.rollout.completion_mask, e.advantages, e.num_completions)


def clipped(epsilon: float) -> Term:
    """`clipped_loss` of the advantages, against the log-probs at sampling time."""
    return lambda e, logprobs, entropies: clipped_loss(
        logprobs,
        e.rollout.sampling_logprobs.double(),
        e.rollout.completion_mask,
        e.advantages,
        e.num_completions,
        epsilon,
    )


def kl_squared(beta: float) -> Term:
    """β times `kl_squared_loss`."""
    return lambda e, logprobs, entropies: (
        beta
        * kl_squared_loss(
            logprobs, e.reference_logprobs, e.rollout.completion_mask, e.num_completions, e.weights
        )
    )


def grpo_k3(beta: float) -> Term:
    """β times `grpo_k3_loss`."""
    return lambda e, logprobs, entropies: (
        beta
        * grpo_k3_loss(
            logprobs, e.reference_logprobs, e.rollout.completion_mask, e.num_completions, e.weights
        )
    )


def entropy(coefficient: float) -> Term:
    """The coefficient times `entropy_loss`."""
    return lambda e, logprobs, entropies: (
        coefficient
        * entropy_loss(entropies, e.rollout.completion_mask, e.num_completions, e.weights)
    )
