"""What the options of the estimator do to a step of the trainer, against formulas written out here.

The steps are plain gradient descent in float64, so that a change of the weights is the gradient.
The naive side runs one sequence at a time through `transformers` and differentiates by autograd.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import Tensor

from rl4lm import ReinforceConfig, ReinforceTrainer, Rollout
from rl4lm.screen.console import Screen
from rl4lm.types import StepStats

VOCABULARY = 11
P, G = 3, 4  # prompts of a step, completions of a prompt
N = P * G
TEMPERATURE = 0.8
RATE = 0.125  # a power of two: dividing a change of the weights by it costs no digit
PROMPTS = ["t1 t2", "t5", "t7 t3 t9", "t4 t4", "t8 t1 t6", "t2", "t10 t3"]
Rows = list[Tensor]  # one tensor [T_i] for each completion


def worth(ids: list[int]) -> float:
    """Any reward will do; this one is not linear and takes both signs."""
    return (sum(ids) * 7 % 5) - 0.5 * len(ids)


def token_worth(ids: list[int]) -> list[float]:
    return [(token * 3 % 4) - 1.25 + 0.5 * t for t, token in enumerate(ids)]


def by_completion(completion_ids, **kwargs):
    return [worth(ids) for ids in completion_ids]


def by_token(completion_ids, **kwargs):
    return [token_worth(ids) for ids in completion_ids]


class Subject:
    """A trainer on a tiny model, with what its steps moved."""

    def __init__(self, tiny: Any, reward: Any = by_completion, lora: bool = False, **options: Any):
        dtype = options.get("dtype", "float64")
        self.tiny = tiny
        model = tiny.build_model("gpt2", vocabulary=VOCABULARY, dtype=getattr(torch, dtype))
        self.initial = copy.deepcopy(model).eval()
        adapter = LoraConfig(task_type="CAUSAL_LM", r=3, target_modules="all-linear")
        adapter.fan_in_fan_out = True
        sizes = {"prompts_per_step": P, "num_generations": G, "max_completion_length": 5}
        plain = {"optim": "sgd", "learning_rate": RATE, "max_grad_norm": 0, "temperature": 0.8}
        quiet = {"eval_samples": 0, "accuracy_func": "none", "noise_every": 0, "max_steps": 9}
        self.screen = Screen(quiet=True)
        self.warnings: list[str] = []
        self.screen.warn = self.warnings.append
        self.trainer = ReinforceTrainer(
            model=model,
            reward_funcs=reward,
            args=ReinforceConfig(**{**sizes, **plain, **quiet, "dtype": dtype, **options}),
            train_dataset=[{"prompt": prompt} for prompt in PROMPTS],
            processing_class=tiny.build_tokenizer(VOCABULARY),
            peft_config=adapter if lora else None,
            screen=self.screen,
        )
        self.learner = self.trainer.learner

    @property
    def model(self) -> Any:
        return self.trainer.policy.module.model

    @property
    def experience(self) -> Any:
        return self.learner._experience

    @property
    def rollout(self) -> Rollout:
        return self.experience.rollout

    @property
    def rewards(self) -> Tensor:
        """float64 [B], by the reward's own rule."""
        values = [worth(ids) for ids in self.rollout.completion_lists()]
        return torch.tensor(values, dtype=torch.float64)

    def weights(self) -> dict[str, Tensor]:
        return {n: p.detach().clone() for n, p in self.trainer.policy.trainable().items()}

    def disturb(self, size: float = 0.05) -> None:
        """Move the policy away from where it began."""
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in self.trainer.policy.trainable().values():
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.add_(size * noise)

    def step(self) -> StepStats:
        """One step; `self.before` is the model that it started from, `self.moved` its gradient."""
        self.before = copy.deepcopy(self.model).eval()
        old = self.weights()
        stats = self.learner.step()
        rate = self.trainer.config.learning_rate
        self.moved = {name: (old[name] - new) / rate for name, new in self.weights().items()}
        return stats

    def gap(self, loss: Tensor) -> float:
        """How far the last step was from the gradient of a naive loss on `self.before`."""
        return max(self.tiny.gap(self.moved, self.gradient(loss)))

    def gradient(self, loss: Tensor) -> dict[str, Tensor]:
        named = {n: p for n, p in self.before.named_parameters() if p.requires_grad}
        parts = torch.autograd.grad(loss, list(named.values()), retain_graph=True)
        return dict(zip(named, parts, strict=True))

    def logprobs(self, model: Any) -> Rows:
        return [logits_of(model, *row)[1] for row in self._sequences()]

    def entropies(self, model: Any) -> Rows:
        return [logits_of(model, *row)[0] for row in self._sequences()]

    def _sequences(self) -> Iterator[tuple[list[int], list[int]]]:
        prompts = self.tiny.prompts_of_rows(self.rollout)
        return zip(prompts, self.rollout.completion_lists(), strict=True)


def logits_of(model: Any, prompt: list[int], completion: list[int]) -> tuple[Tensor, Tensor]:
    """Entropy and log-prob [T] of each token of one sequence, alone and without padding."""
    logits = model(input_ids=torch.tensor([[*prompt, *completion]])).logits[0] / TEMPERATURE
    places = range(len(prompt) - 1, len(prompt) + len(completion) - 1)
    log_pi = torch.stack([logits[k] - logits[k].logsumexp(0) for k in places])  # [T, V]
    entropies = -(log_pi.exp() * log_pi).sum(1)
    return entropies, log_pi[range(len(completion)), completion]


def leave_one_out(values: list[float] | Tensor) -> list[float]:
    """The mean of the others of the same prompt, for each completion."""
    listed = [float(value) for value in values]
    return [
        sum(listed[j] for j in range(N) if j // G == i // G and j != i) / (G - 1) for i in range(N)
    ]


def reinforce(logprobs: Rows, advantages: Any) -> Tensor:
    """-(1/N) Σ_i Σ_t A log π with one A for each completion or one for each token."""
    return -sum((a * row).sum() for a, row in zip(advantages, logprobs, strict=True)) / N


def to_go(paid: Any, gamma: float = 1.0) -> Tensor:
    """G_t = Σ_{k≥t} γ^{k-t} r_k, by two loops."""
    values = [float(value) for value in paid]
    return torch.tensor(
        [
            sum(gamma ** (k - t) * values[k] for k in range(t, len(values)))
            for t in range(len(values))
        ],
        dtype=torch.float64,
    )


def centred(returns: Rows) -> Rows:
    """Each token's return less the mean return from the start of the others of the prompt."""
    baseline = leave_one_out([row[0] for row in returns])
    return [row - b for row, b in zip(returns, baseline, strict=True)]


def plain_loss(subject: Subject) -> Tensor:
    r = subject.rewards
    advantages = [r[i] - b for i, b in enumerate(leave_one_out(r))]
    return reinforce(subject.logprobs(subject.before), advantages)


def same_bits(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    assert first.keys() == second.keys()
    return all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.fixture(scope="session")
def kit() -> ModuleType:
    """The helpers of this file, by name."""
    return sys.modules[__name__]
