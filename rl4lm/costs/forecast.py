"""What is said of a run before its first step: how much memory it will take, and what to turn."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from rl4lm.config import ReinforceConfig
from rl4lm.costs.estimate import Memory, advice, describe, estimate
from rl4lm.costs.footprint import free_bytes, sizes_of
from rl4lm.experience import Gatherer
from rl4lm.model.policy import Policy


@dataclass(frozen=True)
class Forecast:
    """The memory of a run, in numbers and in words."""

    memory: Memory
    line: str
    warning: str | None  # None where it fits, or nobody knows what there is


def forecast(
    policy: Policy, config: ReinforceConfig, gatherer: Gatherer, step: int
) -> Forecast | None:
    """Estimate the memory of a process; None where parameters are dealt over the processes.

    Args:
        policy: before its first step; its gradients are dropped.
        config: the options of the run.
        gatherer: gives the prompts of this process.
        step: that the run begins with.
    """
    if policy.shards:
        return None
    sizes = sizes_of(policy, config, _prompt_tokens(policy, gatherer, step))
    memory, there = estimate(sizes), free_bytes(policy.device)
    here = 1 if policy.device.type == "cuda" else int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return Forecast(memory, describe(memory, there, here), advice(memory, sizes, there, here))


def _prompt_tokens(policy: Policy, gatherer: Gatherer, step: int) -> Sequence[int]:
    _, examples = gatherer.deal(gatherer.prompt_keys(step))
    return [len(ids) for ids in policy.codec.encode([example.prompt for example in examples])]
