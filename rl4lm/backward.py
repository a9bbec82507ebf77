"""From the weights of tokens to gradients: local backward passes, then one sum over the processes.

The weights are what a loss gives every token (`rl4lm.estimator.losses.token_weights`), divided by
the completions of the whole step already. Here they meet the parameters, and nowhere else.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from rl4lm.diagnostics import half_noise, halves, measured_tensors
from rl4lm.errors import TrainingError
from rl4lm.estimator.losses import TokenWeights
from rl4lm.model.policy import Policy
from rl4lm.processes.sharding import whole
from rl4lm.processes.world import World
from rl4lm.types import Experience, Rollout

T = TypeVar("T")


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
            max_tokens: input tokens of one micro-batch at most; does not change the result. Halved
                when the device runs out of memory.
        """
        self.parameters = list(policy.trainable().values())
        self.max_tokens = max_tokens
        self._policy = policy
        self._world = world
        self._temperature = temperature

    def whole(self, rollout: Rollout, weights: TokenWeights) -> Tensor:
        """∇ of the weighted sum into ``.grad``; returns the log-probs met, [B, T].

        It is this process's part of the gradient until `sum_over_processes`.
        """
        return self._within_memory(rollout, lambda: self._accumulate(rollout, weights))

    def sum_over_processes(self) -> None:
        """Make ``.grad`` that of the whole step, on every process in the same bits."""
        self._world.sum_gradients(self.parameters)

    def in_halves(
        self, e: Experience, weights: TokenWeights
    ) -> tuple[Tensor, Callable[[], tuple[float, float] | None]]:
        """`whole`, one half of the prompts after the other, and what their difference says.

        Returns:
            The log-probs met, and what makes `sum_over_processes` and gives `half_noise` of the
            step.
        """
        group = e.rollout.num_generations
        first = halves(e.places, group)[:, None]  # bool [B, 1]
        chosen = measured_tensors([p.numel() for p in self.parameters])
        measured = [self.parameters[k] for k in chosen]

        def one_after_the_other() -> tuple[Tensor, list[Tensor], Tensor]:
            met = self._accumulate(e.rollout, _masked(weights, first))
            kept = [gradient_of(p).clone() for p in measured]
            return met, kept, self._accumulate(e.rollout, _masked(weights, ~first))

        def noise() -> tuple[float, float] | None:
            self.sum_over_processes()
            halves_of_all = [whole(tensor) for tensor in self._world.sum(kept)]
            count = -(-(e.num_completions // group) // 2) * group  # the even places of the step
            total = [whole(gradient_of(p)) for p in measured]
            return half_noise(halves_of_all, total, count, e.num_completions)

        met, kept, other = self._within_memory(e.rollout, one_after_the_other)
        return torch.where(first, met, other), noise

    def by_name(self, rollout: Rollout, weights: TokenWeights) -> dict[str, Tensor]:
        """`whole`, as name -> gradient; the parameters are left without one."""
        self.whole(rollout, weights)
        self.sum_over_processes()
        result = {}
        for name, parameter in self._policy.trainable().items():
            result[name] = whole(gradient_of(parameter)).clone()
            parameter.grad = None
        return result

    def _accumulate(self, rollout: Rollout, weights: TokenWeights) -> Tensor:
        return self._policy.accumulate_gradient(
            rollout, weights, self._temperature, self.max_tokens
        )

    def _within_memory(self, rollout: Rollout, passes: Callable[[], T]) -> T:
        """Make passes from gradients of zero; again with smaller micro-batches if memory runs out.

        Nothing has been told to other processes yet, so that each may try again for itself; not so
        where parameters are dealt, and the others wait in the middle of a pass.
        """
        while True:
            self._clear()
            try:
                return passes()
            except torch.OutOfMemoryError as error:
                self._halve(rollout, error)
            # Only here has the failed attempt let go of its tensors.
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _halve(self, rollout: Rollout, error: Exception) -> None:
        if self._policy.shards:
            raise TrainingError(
                f"the device has no memory for a micro-batch of {self.max_tokens} tokens, and "
                "with sharded parameters one process cannot try again alone: set a smaller "
                "max_tokens_per_micro_batch, or activation_checkpointing"
            ) from error
        longest = rollout.prompt_mask.shape[1] + rollout.completion_mask.shape[1]
        if self.max_tokens <= longest:
            raise TrainingError(
                f"the device has no memory for a micro-batch of one sequence of {longest} "
                "tokens, its prompt included: set activation_checkpointing, use_peft, or a smaller "
                "max_completion_length"
            ) from error
        self.max_tokens = max(self.max_tokens // 2, longest)

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
