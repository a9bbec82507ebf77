"""The reference policy of the KL divergence: the base model, or the model as the run began."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from rl4lm.model.policy import Policy
from rl4lm.types import Rollout

Reference = Callable[[Rollout], Tensor]  # -> log π_ref of the completions, [B, T]


def make_reference(policy: Policy, temperature: float, max_tokens: int) -> Reference:
    """Keep the policy as it is now, to compare with later.

    With an adapter the reference is the base model, the adapter being switched off: it costs no
    memory. Otherwise it is a frozen copy of all weights, each process keeping its part where they
    are dealt. Its distribution has the temperature of the policy's, since the divergence is that
    of the distributions that are sampled from.

    Args:
        policy: before its first step.
        temperature: of both distributions, > 0.
        max_tokens: input tokens of one forward pass.

    Returns:
        A function from a rollout to log π_ref [B, T], by one forward pass.
    """
    if hasattr(policy.module.model, "disable_adapter"):

        def with_adapter_off(rollout: Rollout) -> Tensor:
            with policy.without_adapter():
                return policy.completion_logprobs(rollout, temperature, max_tokens)

        return with_adapter_off
    if policy.shards:
        return _of_kept_shards(policy, temperature, max_tokens)
    frozen = policy.frozen_copy()
    frozen.module.eval()
    return lambda rollout: frozen.completion_logprobs(rollout, temperature, max_tokens)


def _of_kept_shards(policy: Policy, temperature: float, max_tokens: int) -> Reference:
    """Every process keeps its part of the weights, and puts it in place for the time of a pass."""
    kept = policy.shards.keep()

    def with_weights_kept(rollout: Rollout) -> Tensor:
        with policy.shards.holding(kept):
            return policy.completion_logprobs(rollout, temperature, max_tokens)

    return with_weights_kept
