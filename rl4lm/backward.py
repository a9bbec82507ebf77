"""From the weights of tokens to gradients: local backward passes, then one sum over the processes.

The weights are what a loss gives every token (`rl4lm.losses.token_weights`), divided by the
completions of the whole step already. Here they meet the parameters, and nowhere else.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rl4lm.diagnostics import half_noise, halves, measured_tensors
from rl4lm.losses import TokenWeights
from rl4lm.policy import Policy
from rl4lm.types import Experience, Rollout
from rl4lm.world import World


class Backward:
    """Makes gradients of a policy's parameters, in their ``.grad``."""

    def __init__(
        self, policy: Policy, world: World, *, temperature: float, max_tokens: int
    ) -> None:
        """Take what every pass needs.

        Args:
            policy: whose trainable parameters, as they are now.
            world: the processes; gradients are summed over them.
            temperature: of the distribution, > 0.
            max_tokens: input tokens of one micro-batch; does not change the result.
        """
        self.parameters = list(policy.trainable().values())
        self._policy = policy
        self._world = world
        self._temperature = temperature
        self._max_tokens = max_tokens

    def whole(self, rollout: Rollout, weights: TokenWeights) -> Tensor:
        """∇ of the weighted sum into ``.grad``; returns the log-probs met, [B, T]."""
        self._clear()
        met = self._accumulate(rollout, weights)
        self._world.sum_gradients(self.parameters)
        return met

    def in_halves(
        self, e: Experience, weights: TokenWeights
    ) -> tuple[Tensor, tuple[float, float] | None]:
        """`whole`, one half of the prompts after the other, and what their difference says.

        Returns:
            The log-probs met, and `half_noise` of the step.
        """
        group, prompts = e.rollout.num_generations, len(e.rollout.prompt_ids)
        first = halves(e.first_completion // group, prompts, group)[:, None]  # bool [B, 1]
        self._clear()
        met = self._accumulate(e.rollout, _masked(weights, first))
        chosen = measured_tensors([p.numel() for p in self.parameters])
        measured = [self.parameters[k] for k in chosen]
        kept = [gradient_of(p).clone() for p in measured]
        other = self._accumulate(e.rollout, _masked(weights, ~first))
        self._world.sum_gradients(self.parameters)
        kept = self._world.sum(kept)
        count = -(-(e.num_completions // group) // 2) * group  # the even places of the whole step
        noise = half_noise(kept, [gradient_of(p) for p in measured], count, e.num_completions)
        return torch.where(first, met, other), noise

    def by_name(self, rollout: Rollout, weights: TokenWeights) -> dict[str, Tensor]:
        """`whole`, as name -> gradient; the parameters are left without one."""
        self.whole(rollout, weights)
        result = {}
        for name, parameter in self._policy.trainable().items():
            result[name] = gradient_of(parameter).clone()
            parameter.grad = None
        return result

    def _accumulate(self, rollout: Rollout, weights: TokenWeights) -> Tensor:
        return self._policy.accumulate_gradient(
            rollout, weights, self._temperature, self._max_tokens
        )

    def _clear(self) -> None:
        for parameter in self.parameters:
            # Zeros, never None: AdamW would leave a None parameter out of its decay of moments.
            parameter.grad = torch.zeros_like(parameter)


def gradient_of(parameter: Tensor) -> Tensor:
    """The gradient of a parameter that has one."""
    assert parameter.grad is not None
    return parameter.grad


def _masked(weights: TokenWeights, rows: Tensor) -> TokenWeights:
    """The weights of some rows, and 0 elsewhere: rows bool [B, 1]."""
    return TokenWeights(weights.logprobs.where(rows, 0.0), weights.entropies.where(rows, 0.0))
