"""Rewards, and the metric of evaluations."""

from __future__ import annotations

from typing import Literal

from pydantic.dataclasses import dataclass

from rl4lm.settings.schema import RULES, option


@dataclass(frozen=True, kw_only=True, config=RULES)
class RewardFields:
    """Rewards, and the metric of evaluations."""

    reward_funcs: list[str] = option(
        "rewards",
        ["rewards.arithmetic:exact_answer"],
        "rewards, each package.module:function or path/to/file.py:function, or a sequence "
        "classifier: a folder or hub id, with #label where it knows several",
        min_length=1,
    )
    reward_weights: list[float] | None = option(
        "rewards", None, "one weight for each of reward_funcs; none = 1 each"
    )
    reward_timeout_s: float | None = option(
        "rewards",
        60.0,
        "seconds that a named reward may take for the completions of one call, and then for a "
        "single one; one that hangs alone scores the reward's minimum; none = no limit",
        gt=0,
    )
    on_reward_error: Literal["raise", "mask"] = option(
        "rewards",
        "raise",
        "what to do where a reward raises an exception: raise stops the run, mask leaves that "
        "completion without this reward and counts it",
    )
    accuracy_func: str | None = option(
        "rewards",
        "rewards.arithmetic:exact_answer",
        "scores the greedy answers of an evaluation, 1 for a right one; the default one where the "
        "rows have a column `answer`; none = off",
    )
    eval_metrics: list[str] = option(
        "rewards",
        [],
        "functions, named like reward_funcs, that score the completions of an evaluation and are "
        "never trained on; empty = none",
    )
