"""From an experience to the gradient of its loss: this process's part, then the sum over all.

The loss is differentiated on log-probs and entropies alone; what it gives each token meets the
parameters in `rl4lm.backward`. What is met on the way is counted here, and summed up once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from rl4lm.backward import Backward
from rl4lm.config import ReinforceConfig
from rl4lm.diagnostics import (
    Tally,
    noise_metrics,
    tally_advantages,
    tally_gap,
    tally_kl,
    tally_other_policy,
    tally_ratios,
)
from rl4lm.estimator.baselines import SCALES
from rl4lm.estimator.losses import TokenWeights, token_weights
from rl4lm.estimator.shaping import shaped_advantages
from rl4lm.model.policy import Policy
from rl4lm.objective import loss_terms, total
from rl4lm.rewarding.unanswered import is_count
from rl4lm.types import Experience, Rollout

# Makes ``.grad`` that of the whole step, and says how noisy it is; {} where nobody asked.
SumUp = Callable[[], dict[str, float | None]]


class Descent:
    """Differentiates the losses of experiences."""

    def __init__(self, config: ReinforceConfig, policy: Policy, backward: Backward) -> None:
        """Take the parts.

        Args:
            config: names the terms of the loss.
            policy: whose log-probs are read anew where the loss has a ratio to those of sampling.
            backward: from the weights of tokens to gradients.
        """
        self._config = config
        self._policy = policy
        self._backward = backward
        self._terms = loss_terms(config)

    def __call__(self, e: Experience, fresh: bool, measure_noise: bool) -> tuple[Tally, SumUp]:
        """This process's part of ∇L of an experience into ``.grad``.

        Args:
            e: the experience.
            fresh: the policy is still the one that sampled, or that a server stood in for.
            measure_noise: go through it in halves, whose difference is the noise.

        Returns:
            This process's numbers about it, and what sums the gradient over the processes and
            gives the numbers about its noise. The processes meet over the first before the second.
        """
        logprobs = self._logprobs_now(e)
        tally = self._tally(e, logprobs)
        met, sum_up = (self._in_halves if measure_noise else self._whole)(e, logprobs)
        if fresh:
            tally |= self._tally_sampler(e, logprobs, met)
        return tally, sum_up

    def _logprobs_now(self, e: Experience) -> Tensor:
        """log π [B, T], float64, of the policy as it is; that of sampling where no term asks."""
        # With an importance ratio the weights depend on the policy as it is now: one more pass.
        if self._config.resolved_epsilon is None:
            return e.policy_logprobs.double()
        return self._logprobs(e.rollout).double()

    def _logprobs(self, rollout: Rollout) -> Tensor:
        return self._policy.completion_logprobs(
            rollout, self._config.temperature, self._backward.max_tokens
        )

    def _loss(self, e: Experience) -> Callable[[Tensor, Tensor], Tensor]:
        return total(self._terms, e)

    def _weights(self, e: Experience, logprobs: Tensor) -> TokenWeights:
        """∂L/∂log π and ∂L/∂H of every token, where the policy's log-probs are these [B, T]."""
        return token_weights(self._loss(e), logprobs, torch.zeros_like(logprobs))

    def _whole(self, e: Experience, logprobs: Tensor) -> tuple[Tensor, SumUp]:
        """One backward pass: the log-probs met [B, T], and the sum over the processes."""

        def sum_up() -> dict[str, float | None]:
            self._backward.sum_over_processes()
            return {}

        return self._backward.whole(e.rollout, self._weights(e, logprobs)), sum_up

    def _in_halves(self, e: Experience, logprobs: Tensor) -> tuple[Tensor, SumUp]:
        """The same, with how noisy the gradient is with the baseline and without it."""
        without = self._noise_without_baseline(e, logprobs)
        met, noise = self._backward.in_halves(e, self._weights(e, logprobs))
        group = e.rollout.num_generations
        scale = SCALES[self._config.resolved_baseline](e.num_completions // group, group)
        return met, lambda: noise_metrics(noise(), without, scale, e.num_completions)

    def _noise_without_baseline(
        self, e: Experience, logprobs: Tensor
    ) -> tuple[float, float] | None:
        """`half_noise` with nothing subtracted from the returns; None where it is no comparison."""
        # Divided by a deviation of their own the two would not be comparable.
        if self._config.resolved_baseline == "none" or self._config.scale_rewards != "none":
            return None
        advantages = shaped_advantages(
            e.returns,
            torch.zeros_like(e.weights),
            e.weights,
            e.scores.valid.flatten(),
            e.rollout.completion_mask,
        )
        plain = replace(e, advantages=advantages)
        return self._backward.in_halves(plain, self._weights(plain, logprobs))[1]()

    def _tally(self, e: Experience, logprobs: Tensor) -> Tally:
        """What there is to count before the backward pass."""
        loss = self._loss(e)(logprobs, torch.zeros_like(logprobs))
        tally = Tally({"loss": float(loss), **counted(e)}, {}) | tally_advantages(e)
        if self._config.resolved_epsilon is not None:
            tally |= tally_ratios(e, logprobs, self._config.resolved_epsilon)
        if self._config.beta:
            tally |= tally_kl(e)
        return tally

    def _tally_sampler(self, e: Experience, logprobs: Tensor, met: Tensor) -> Tally:
        """How far the policy is from what sampled: by rounding, or by a server's own weights."""
        if self._config.sampler_url is None:
            return tally_gap(e.rollout, met)
        return tally_other_policy(e, logprobs)


def counted(e: Experience) -> dict[str, float]:
    """What the scorer counted of this process's completions; the names are the same on all."""
    return {name: value for name, value in e.scores.metrics.items() if is_count(name)}
