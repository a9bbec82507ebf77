"""What the gradient is of."""

from __future__ import annotations

from typing import Literal

from pydantic.dataclasses import dataclass

from rl4lm.estimator.names import BaselineName
from rl4lm.settings.schema import RULES, option


@dataclass(frozen=True, kw_only=True, config=RULES)
class EstimatorFields:
    """What the gradient is of."""

    baseline: Literal["auto", BaselineName] = option(
        "estimator",
        "auto",
        "what is subtracted from a reward; auto is prompt_leave_one_out where num_generations > 1, "
        "else batch_leave_one_out, and none where a step has one completion",
    )
    gamma: float = option(
        "estimator",
        1.0,
        "discount per token of what is paid later; a completion's one reward is paid at its last "
        "token; 1 = no discount",
        ge=0,
        le=1,
    )
    beta: float = option(
        "estimator",
        0.0,
        "weight of the KL divergence from the reference, in units of reward per nat; the reference "
        "is the base model where there is an adapter, else the model as it starts; 0 = off",
        ge=0,
    )
    kl_in: Literal["reward", "token_reward", "loss", "grpo_k3"] = option(
        "estimator",
        "reward",
        "where the KL goes: reward takes it off the completion's reward, token_reward off what "
        "each token earns, loss adds half its square; these three follow the gradient of the KL. "
        "grpo_k3 is another objective",
    )
    entropy_coef: float = option(
        "estimator", 0.0, "weight of the entropy, in units of reward per nat; 0 = off", ge=0
    )
    entropy_in: Literal["reward", "loss"] = option(
        "estimator",
        "reward",
        "reward follows the gradient of the completion's entropy; loss only its direct term, which "
        "is another objective",
    )
    num_iterations: int = option(
        "estimator",
        1,
        "optimizer steps on the completions of one sampling; above 1 with importance ratio and "
        "clip, which is another objective; 1 = off",
        ge=1,
    )
    epsilon: float | None = option(
        "estimator",
        None,
        "the importance ratio of a completion is clipped beyond 1 - epsilon and 1 + epsilon; none "
        "= 0.2 where num_iterations > 1, else neither ratio nor clip",
        gt=0,
    )
    loss_type: Literal["reinforce", "dr_grpo", "grpo", "dapo"] = option(
        "estimator",
        "reinforce",
        "what a completion's tokens come to in the loss: reinforce is their sum, dr_grpo the sum "
        "over max_completion_length; grpo is their mean, dapo the mean over all tokens of the "
        "step, which are other objectives",
    )
    scale_rewards: Literal["none", "group", "batch"] = option(
        "estimator",
        "none",
        "group divides advantages by the standard deviation of the prompt's rewards, batch by that "
        "of the step's, which are other objectives; none or false = off",
    )
    mask_truncated_completions: bool = option(
        "estimator",
        False,
        "completions that the length limit cut off count nothing in the loss, and stay in the "
        "baseline, which is another objective; false = off",
    )
