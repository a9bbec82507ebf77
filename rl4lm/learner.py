"""One optimizer step: sample, score, centre, differentiate, apply.

Everything that decides the gradient is in this file, from top to bottom in the order in which it
happens. Files, screens and the length of the run are the trainer's business.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rl4lm.assembly import Task
from rl4lm.baselines import BASELINES, BaselineInputs
from rl4lm.baselines import advantages as subtract_baseline
from rl4lm.config import ReinforceConfig
from rl4lm.data import stream_indices
from rl4lm.errors import TrainingError
from rl4lm.losses import logprob_weights, reinforce_loss
from rl4lm.metrics import (
    Stopwatch,
    completion_rows,
    gap_metrics,
    pack,
    rollout_metrics,
    sampler_gap,
)
from rl4lm.optim import make_optimizer, make_scheduler, scale_to_norm
from rl4lm.policy import Policy
from rl4lm.preparing import inference_mode_of
from rl4lm.randomness import Stream
from rl4lm.sampling import EndRule, InverseCdf, generate
from rl4lm.scoring import RewardContext
from rl4lm.types import Example, Rollout, StepStats, TrainState
from rl4lm.world import World

_NON_FINITE_LIMIT = 3  # steps in a row without a finite gradient after which the run stops


class Learner:
    """Makes optimizer steps on a policy."""

    def __init__(
        self, config: ReinforceConfig, policy: Policy, task: Task, ends: EndRule, world: World
    ) -> None:
        """Take the parts of a run; the optimizer starts fresh.

        Args:
            config: the options of the run.
            policy: what is trained.
            task: prompts and rewards.
            ends: what ends a completion.
            world: the processes; each works on its share of the prompts.
        """
        self.state = TrainState()
        self._config = config
        self._policy = policy
        self._task = task
        self._ends = ends
        self._world = world
        self._share = world.share(config.prompts_per_step, "prompts_per_step")
        self._parameters = list(policy.trainable().values())
        self._optimizer = make_optimizer(config, self._parameters)
        self._scheduler = make_scheduler(config, self._optimizer)
        self._baseline = BASELINES[config.resolved_baseline]
        self._non_finite = 0  # steps in a row

    def step(self) -> StepStats:
        """One REINFORCE update: sample, score, centre, differentiate, apply."""
        watch = Stopwatch()
        step = self.state.step
        examples = self._examples(step)
        rollout = self._sample(examples, step)
        watch.lap("sample")
        texts = self._policy.codec.decode(rollout.completion_lists())
        scores = self._task.judges.scorer(
            examples, texts, rollout.completion_lists(), self.context()
        )
        watch.lap("score")
        packed = self._world.gather(pack(rollout, scores))  # [P, G, 5 + K] of the whole step
        advantages = self._advantages(packed)  # [P, G] of the whole step
        mine = advantages[self._share].flatten()  # [B]
        watch.lap("centre")
        logprobs = self._differentiate(rollout, mine, advantages.numel())
        watch.lap("gradient")
        update = self._apply(live=bool(advantages.any()))
        watch.lap("update")
        gap = torch.tensor([sampler_gap(rollout, logprobs)], dtype=torch.float64)  # [1, 3]
        tokens = int(packed[..., 2].sum())
        self.state = replace(
            self.state,
            step=step + 1,
            samples=self.state.samples + advantages.numel(),
            tokens=self.state.tokens + tokens,
            skipped_steps=self.state.skipped_steps + int(not update["updated"]),
        )
        metrics = {
            "step": step + 1,
            **rollout_metrics(packed, self._task.judges.scorer.names),
            "effective_samples": float(advantages.ne(0).sum()),
            **update,
            **gap_metrics(self._world.gather(gap)),
            **scores.metrics,
            **watch.seconds,
            "tokens_per_second": tokens / sum(watch.seconds.values()),
        }
        rows = completion_rows(step + 1, examples, rollout, texts, scores, mine)
        return StepStats(step + 1, metrics, rows)

    def _examples(self, step: int) -> list[Example]:
        """This process's prompts of a step."""
        count = self._config.prompts_per_step
        data = self._task.train
        indices = stream_indices(len(data), self._config.seed, step * count, count)
        return data.examples(indices[self._share])

    def _sample(self, examples: Sequence[Example], step: int) -> Rollout:
        choose = InverseCdf(
            seed=self._config.seed,
            stream=Stream.TRAINING,
            step=step,
            first_prompt=self._share.start,
            num_generations=self._config.num_generations,
            temperature=self._config.temperature,
        )
        with inference_mode_of(self._policy.module):
            return generate(
                self._policy,
                self._policy.codec.encode([example.prompt for example in examples]),
                choose,
                num_generations=self._config.num_generations,
                max_completion_length=self._config.max_completion_length,
                ends=self._ends,
            )

    def context(self) -> RewardContext:
        """Where training stands, for rewards that ask."""
        return RewardContext(self.state.step, self._config.max_steps, self._config.seed)

    def _advantages(self, packed: Tensor) -> Tensor:
        """A = r - b over the whole step: packed [P, G, 5 + K] -> float64 [P, G]."""
        rewards, valid = packed[..., 0], packed[..., 1].bool()
        inputs = BaselineInputs(lengths=packed[..., 2].long(), valid=valid)
        baseline, state = self._baseline(rewards, inputs, self.state.baseline_state)
        self.state = replace(self.state, baseline_state=state)
        return subtract_baseline(rewards, baseline, valid)

    def _differentiate(self, rollout: Rollout, advantages: Tensor, total: int) -> Tensor:
        """∇L into ``.grad``, summed over processes; returns the log-probs met, [B, T]."""
        for parameter in self._parameters:
            # Zeros, never None: AdamW would leave a None parameter out of its decay of moments.
            parameter.grad = torch.zeros_like(parameter)
        mask = rollout.completion_mask
        # The loss is linear in the log-probs, so the leaf's values do not matter; its precision
        # does, being that of the weights.
        weights = logprob_weights(
            lambda leaf: reinforce_loss(leaf, mask, advantages, total),
            rollout.sampling_logprobs.double(),
        )
        logprobs = self._policy.accumulate_gradient(
            rollout, weights, self._config.temperature, self._config.max_tokens_per_micro_batch
        )
        self._world.sum_gradients(self._parameters)
        return logprobs

    def _apply(self, live: bool) -> dict[str, Any]:
        """Clip and step the optimizer; without any advantage or a finite gradient, skip it.

        Every process decides alike, because all hold the same advantages and gradient bits.
        """
        norm = float(scale_to_norm(self._parameters, self._config.max_grad_norm))
        learning_rate = self._scheduler.get_last_lr()[0]
        finite = math.isfinite(norm)
        self._note_finite(finite)
        if live and finite:
            self._optimizer.step()
        self._step_schedule()
        limit = self._config.max_grad_norm
        return {
            "grad_norm": norm,
            "grad_clipped": bool(limit and norm > limit),
            "updated": live and finite,
            "learning_rate": learning_rate,
        }

    def _step_schedule(self) -> None:
        with warnings.catch_warnings():
            # A skipped optimizer step is meant; torch takes it for a mistake in the order of calls.
            warnings.filterwarnings("ignore", message=".*lr_scheduler.step\\(\\).*")
            self._scheduler.step()

    def _note_finite(self, finite: bool) -> None:
        self._non_finite = 0 if finite else self._non_finite + 1
        if self._non_finite >= _NON_FINITE_LIMIT:
            raise TrainingError(
                f"the gradient was not finite for {_NON_FINITE_LIMIT} steps in a row; lower the "
                "learning rate or the precision's risk (dtype float32), and look at the rewards"
            )

    def gradient(self, rollout: Rollout, advantages: Tensor) -> dict[str, Tensor]:
        """∇L of a rollout by the very backward pass of a step; see `ReinforceTrainer.gradient`."""
        count = torch.tensor([len(rollout.completion_ids)])
        total = int(self._world.gather(count).sum())
        self._differentiate(rollout, advantages, total)
        result = {}
        for name, parameter in self._policy.trainable().items():
            assert parameter.grad is not None
            result[name] = parameter.grad.clone()
            parameter.grad = None
        return result
