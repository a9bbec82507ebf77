"""Bugs that public toolkits shipped, each shown not to happen here.

Every docstring begins with the public threads. The tests go through the code that trains:
`learner.step()`, `ReinforceTrainer.gradient`, the sampler. What is expected comes from a naive
loop, from a formula written out here, or from another layout of the same work; beside most tests
the bug is planted, and the check must notice. Steps are plain gradient descent in float64, so that
a change of the weights is the gradient.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from rl4lm import ReinforceConfig, ReinforceTrainer, Rollout
from rl4lm.screen.console import Screen
from rl4lm.types import Experience, Scores, StepStats, TrainState

VOCABULARY = 11
TEMPERATURE = 0.8
G = 4
PROMPTS = ["t1 t2", "t5", "t7 t3 t9 t0 t4", "t4 t4 t8"]  # t0 is both end token and padding
P = len(PROMPTS)  # all of them in every step
N = P * G


def worth(ids: Sequence[int]) -> float:
    """Any reward will do; this one is not linear and takes both signs."""
    return (sum(ids) * 7 % 5) - 0.5 * len(ids)


def by_completion(completion_ids, **kwargs):
    return [worth(ids) for ids in completion_ids]


def with_idle_rows(prompts, completion_ids, **kwargs):
    """All completions of one prompt earn the same; the last of the step has no reward at all."""
    values = zip(prompts, completion_ids, strict=True)
    found: list[float | None] = [1.0 if p == "t5" else worth(ids) for p, ids in values]
    return [*found[:-1], None]


class Run:
    """A trainer on a tiny model, and what its last step moved."""

    def __init__(
        self,
        tiny: Any,
        reward: Any = by_completion,
        model: Any = None,
        prompts: Sequence[str] = PROMPTS,
        tokenizer: Any = None,
        peft_config: Any = None,
        **options: Any,
    ):
        self.tiny = tiny
        if model is None:
            model = tiny.build_model("gpt2", vocabulary=VOCABULARY, dtype=torch.float64)
        sizes = {"prompts_per_step": P, "num_generations": G, "max_completion_length": 6}
        plain = {"optim": "sgd", "learning_rate": 1.0, "max_grad_norm": 0, "dtype": "float64"}
        quiet = {"eval_samples": 0, "accuracy_func": "none", "noise_every": 0, "max_steps": 9}
        screen = Screen(quiet=True)
        self.warnings: list[str] = []
        screen.warn = self.warnings.append
        self.trainer = ReinforceTrainer(
            model=model,
            reward_funcs=reward,
            args=ReinforceConfig(
                **{**sizes, **plain, **quiet, "temperature": TEMPERATURE, **options}
            ),
            train_dataset=[{"prompt": prompt} for prompt in prompts],
            processing_class=tokenizer or tiny.build_tokenizer(vocabulary_of(model)),
            peft_config=peft_config,
            screen=screen,
        )
        self.learner = self.trainer.learner
        self.policy = self.trainer.policy

    @property
    def experience(self) -> Experience:
        assert self.learner._experience is not None
        return self.learner._experience

    @property
    def rollout(self) -> Rollout:
        return self.experience.rollout

    def weights(self) -> dict[str, Tensor]:
        return {n: p.detach().clone() for n, p in self.policy.trainable().items()}

    def restart(self, weights: dict[str, Tensor]) -> None:
        """Go back to the first step, with these weights."""
        self.learner.state = TrainState()
        with torch.no_grad():
            for name, parameter in self.policy.trainable().items():
                parameter.copy_(weights[name])

    def disturb(self, size: float = 0.05) -> Run:
        """Move the policy away from where it began."""
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in self.policy.trainable().values():
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.add_(size * noise)
        return self

    def step(self) -> StepStats:
        """One step; `self.before` is the model that it started from, `self.moved` its gradient."""
        self.before = copy.deepcopy(self.policy.module.causal_lm).eval()
        old = self.weights()
        stats = self.learner.step()
        rate = self.trainer.config.learning_rate
        self.moved = {name: (old[name] - new) / rate for name, new in self.weights().items()}
        return stats

    def naive(self, advantages: Tensor | None = None) -> dict[str, Tensor]:
        """∇L of the last step by a loop over single sequences, with advantages made by hand."""
        if advantages is None:
            advantages = leave_one_out(self.experience.scores)
        temperature = self.trainer.config.temperature
        return self.tiny.naive_gradient(self.before, self.rollout, advantages, temperature)

    def gap(self, expected: dict[str, Tensor] | None = None) -> float:
        return max(self.tiny.gap(self.moved, expected or self.naive()))


def vocabulary_of(model: Any) -> int:
    return model.get_input_embeddings().weight.shape[0]


def leave_one_out(scores: Scores) -> Tensor:
    """A [B] by two loops: the reward less the mean of the others of its prompt that have one."""
    advantages = []
    rows = zip(scores.rewards.tolist(), scores.valid.tolist(), strict=True)
    for rewards, valid in rows:
        for i in range(len(rewards)):
            others = [rewards[j] for j in range(len(rewards)) if j != i and valid[j]]
            mean = sum(others) / len(others) if others else 0.0
            advantages.append(rewards[i] - mean if valid[i] else 0.0)
    return torch.tensor(advantages, dtype=torch.float64)


@pytest.fixture(scope="session")
def kit() -> ModuleType:
    """The helpers of this file, by name."""
    return sys.modules[__name__]
