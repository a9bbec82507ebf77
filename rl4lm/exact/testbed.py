"""A real trainer on the tiny problem of `rl4lm.exact.enumeration`, beside the truth about it.

The left hand of every comparison that `verify` makes is the trainer's own code, run as it is: whole
steps in `rl4lm.exact.steps`, all steps that there can be in `rl4lm.exact.expectation`. The right
hand is in `rl4lm.exact.stated`.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rl4lm.config import ReinforceConfig
from rl4lm.estimator.baselines import Baseline, BaselineInputs, State
from rl4lm.exact.enumeration import (
    PROMPTS,
    Rewards,
    Truth,
    all_completions,
    gradient_of_expectation,
    measure,
    perturb,
    tiny_model,
    tiny_tokenizer,
)
from rl4lm.exact.stated import Stated
from rl4lm.screen.console import Screen
from rl4lm.trainer import ReinforceTrainer
from rl4lm.types import Rollout


class Testbed:
    """The trainer on the tiny problem, beside the truth about it."""

    def __init__(self, config: ReinforceConfig, token_rewards: bool) -> None:
        """Make both.

        Args:
            config: fits the tiny problem; steps are plain SGD, so that they show the gradient.
            token_rewards: pay every token apart.
        """
        self.config = config
        self.completions = all_completions(config.max_completion_length)
        self.rewards = Rewards.draw(self.completions, config.seed)
        self._token_rewards = token_rewards
        self.trainer = self.make_trainer(tiny_model(config.seed), config)
        self.learner = self.trainer.learner
        self.centre = self.learner.gatherer.centre  # its baseline and shaping are the run's
        self.parameters = self.trainer.policy.trainable()
        self._reference = self._bare_model()  # before the policy leaves it
        perturb(self.parameters.values(), config.seed + 1, 0.2)
        self.model = self._bare_model()
        self.truth = self.measure()
        self.rollout = self._all_completions()
        self.stated = Stated(config, self.truth, self.rewards, token_rewards)
        self._features = self.trainer.policy.prompt_features(
            self.rollout.prompt_ids, self.rollout.prompt_mask
        )  # of the policy as it is now; steps are taken back

    def make_trainer(self, model: Any, config: ReinforceConfig) -> ReinforceTrainer:
        """A trainer of a model on the tiny problem's prompts and rewards."""
        reward = self.rewards.by_token if self._token_rewards else self.rewards.whole

        def table(prompts: Any, completion_ids: Any, **_: Any) -> Any:
            return reward(prompts, completion_ids)

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*fan_in_fan_out")  # peft, of GPT-2's layers
            return ReinforceTrainer(
                model=model,
                reward_funcs=table,
                args=config,
                train_dataset=[{"prompt": prompt} for prompt in PROMPTS],
                processing_class=tiny_tokenizer(),
                screen=Screen(quiet=True),
            )

    def _bare_model(self) -> Any:
        """A copy of the policy's model as it is now, on the CPU: the truth is worked out there."""
        return copy.deepcopy(self.trainer.policy.module.model).cpu().eval()

    def measure(self) -> Truth:
        """The policy as it is now, written down through a bare model with its weights."""
        model = self._bare_model()
        named = dict(model.named_parameters())
        leaves = {name: named[name] for name in self.parameters}
        return measure(model, leaves, self._reference, self.completions, self.config.temperature)

    def _all_completions(self) -> Rollout:
        """Every completion of every prompt as one rollout, in the order of the truth."""
        prompts = self.trainer.policy.codec.encode(PROMPTS)
        rollout = Rollout.from_lists(
            [ids for ids in prompts for _ in self.completions],
            [list(ids) for _ in prompts for ids in self.completions],
            num_generations=len(self.completions),
        )
        logprobs = self.trainer.policy.completion_logprobs(rollout, self.config.temperature)
        return replace(rollout, sampling_logprobs=logprobs)

    def logprob_error(self) -> float:
        """Largest difference of the policy's log-probs from the truth."""
        truth = self.truth.logprobs.flatten(0, 1)  # [P·n, T]
        return float((self.rollout.sampling_logprobs - truth).abs().max())

    def baseline_of(
        self, baseline: Baseline, rewards: Tensor, chosen: Tensor, state: State
    ) -> tuple[Tensor, State]:
        """What a baseline says of batches of completions.

        Args:
            baseline: whichever.
            rewards: float64 [..., P, G].
            chosen: int64 [..., P, G], indices of the completions.
            state: of the baseline.

        Returns:
            Its values [..., P, G], and its new state.
        """
        inputs = BaselineInputs(
            lengths=self.truth.mask.sum(dim=1)[chosen],
            valid=torch.ones_like(rewards, dtype=torch.bool),
            prompt_keys=torch.arange(len(PROMPTS)),
            prompt_features=self._features,
        )
        return baseline(rewards, inputs, state)

    def own_baseline(self, rewards: Tensor, chosen: Tensor, state: State) -> Tensor:
        """The values [..., P, G] of the run's own baseline on batches."""
        return self.baseline_of(self.centre.baseline, rewards, chosen, state)[0]

    def true_gradient(self) -> Tensor:
        """∇J [D] by autograd through the probabilities."""
        named = dict(self.model.named_parameters())
        reference, earned = self.truth.reference.sum(dim=-1), self.rewards.per_token.sum(dim=-1)

        def value(p: int, o: int, log_pi: Tensor) -> Tensor:
            divergence = log_pi - reference[p, o]
            return earned[p, o] - self.config.beta * divergence - self.config.entropy_coef * log_pi

        return gradient_of_expectation(
            self.model,
            {name: named[name] for name in self.parameters},
            self.completions,
            self.config.temperature,
            value,
        )


def from_start(chosen: Tensor, returns: Tensor) -> Tensor:
    """The return of each completion of batches [K, P, G], of returns [P, n, T]: [K, P, G]."""
    return torch.stack([returns[p, chosen[:, p], 0] for p in range(len(PROMPTS))], dim=1)


def flat(gradient: Mapping[str, Tensor]) -> Tensor:
    """The parts of a gradient as one vector [D]."""
    return torch.cat([part.flatten() for part in gradient.values()]).cpu()
