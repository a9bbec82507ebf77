"""The sets of options that `rl4lm verify --all` goes through."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from rl4lm.config import ReinforceConfig
from rl4lm.curriculum import AS_THEY_COME
from rl4lm.estimator.baselines import BASELINES, NEEDS_TWO_GENERATIONS

# Each an option of TRL's, or several together with what they act on.
_SHAPED: tuple[dict[str, Any], ...] = (
    {"loss_type": "dr_grpo"},
    {"loss_type": "grpo"},
    {"loss_type": "dapo"},
    {"scale_rewards": "group"},
    {"scale_rewards": "batch"},
    {"mask_truncated_completions": True},
    {
        "loss_type": "dapo",
        "scale_rewards": "group",
        "mask_truncated_completions": True,
        "baseline": "prompt_mean",
        "beta": 0.3,
        "kl_in": "grpo_k3",
        "entropy_coef": 0.2,
        "entropy_in": "loss",
    },
)


def every_case(config: ReinforceConfig) -> Iterator[tuple[ReinforceConfig, bool]]:
    """Every baseline and estimator option: (configuration, rewards per token)."""
    off: dict[str, Any] = {
        **AS_THEY_COME,
        "gamma": 1.0,
        "beta": 0.0,
        "entropy_coef": 0.0,
        "num_iterations": 1,
        "epsilon": None,
        "loss_type": "reinforce",
        "scale_rewards": "none",
        "mask_truncated_completions": False,
    }
    for use_peft, temperature in itertools.product((False, True), (1.0, 0.7)):
        base = replace(config, **off, use_peft=use_peft, temperature=temperature, baseline="none")
        for generations, name in itertools.product((1, 2, 3), BASELINES):
            if generations > 1 or name not in NEEDS_TWO_GENERATIONS:
                chosen: Any = name
                yield replace(base, baseline=chosen, num_generations=generations), False
    for use_peft in (False, True):
        base = replace(
            config, **off, use_peft=use_peft, temperature=0.7, baseline="auto", num_generations=2
        )
        yield base, True
        for form in ("reward", "token_reward", "loss", "grpo_k3"):
            yield replace(base, beta=0.3, kl_in=form), False
        for place in ("reward", "loss"):
            yield replace(base, entropy_coef=0.3, entropy_in=place), False
        yield replace(base, beta=0.3, kl_in="token_reward", entropy_coef=0.2), True
        yield replace(base, gamma=0.9), True
        yield replace(base, num_iterations=2), False
        for shaped in _SHAPED[use_peft::2]:
            yield replace(base, **shaped), False
