"""One optimizer step: gather experience, differentiate, apply.

What decides the gradient is in the modules that are called here, in the order in which it happens:
`experience`, with `centring`; `descent`, with `objective` and `backward`; `optim`. Files, screens
and the length of the run are the business of `rl4lm.run`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from rl4lm.assembly import Task
from rl4lm.backward import Backward
from rl4lm.config import ReinforceConfig
from rl4lm.descent import Descent, counted
from rl4lm.diagnostics import as_row, combine, idle_seconds, signal_metrics, tally_busy
from rl4lm.estimator.losses import reinforce_loss, token_weights
from rl4lm.experience import Gatherer
from rl4lm.metrics import Stopwatch, completion_rows, rollout_metrics
from rl4lm.model.policy import Policy
from rl4lm.model.reference import make_reference
from rl4lm.objective import direct_terms
from rl4lm.optim import Updates
from rl4lm.processes.activity import doing
from rl4lm.processes.world import World
from rl4lm.rundir.rank_state import (
    experience_from,
    experience_state,
    random_states,
    set_random_states,
)
from rl4lm.sampling.loop import EndRule
from rl4lm.scoring import RewardContext
from rl4lm.types import Experience, Rollout, StepStats, TrainState


class Learner:
    """Makes optimizer steps on a policy."""

    def __init__(
        self, config: ReinforceConfig, policy: Policy, task: Task, ends: EndRule, world: World
    ) -> None:
        """Take the parts of a run; the optimizer starts fresh, and the reference is the policy.

        Args:
            config: the options of the run.
            policy: what is trained.
            task: prompts and rewards.
            ends: what ends a completion.
            world: the processes; each works on its share of the prompts.
        """
        self.state = TrainState()
        self._config = config
        self._world = world
        budget = config.max_tokens_per_micro_batch
        reference = make_reference(policy, config.temperature, budget) if config.beta else None
        self.gatherer = Gatherer(config, policy, task, ends, reference, world)
        self.backward = Backward(policy, world, temperature=config.temperature, max_tokens=budget)
        self._descent = Descent(config, policy, self.backward)
        self._always_live = bool(direct_terms(config))
        self.updates = Updates(config, self.backward.parameters)
        self._experience: Experience | None = None  # what the present steps learn from
        self.non_finite = 0  # steps in a row without a finite gradient

    def step(self) -> StepStats:
        """One REINFORCE update: sample, score, centre, differentiate, apply."""
        watch, step = Stopwatch(), self.state.step
        doing("sampling", step + 1)
        fresh = step % self._config.num_iterations == 0 or self._experience is None
        if fresh:
            self._experience, baseline_state = self.gatherer.gather(
                step, self.state.baseline_state, self.context(), watch
            )
            self.state = replace(self.state, baseline_state=baseline_state)
        assert self._experience is not None
        return self.learn(self._experience, fresh, watch)

    def learn(self, e: Experience, fresh: bool, watch: Stopwatch) -> StepStats:
        """The second half of a step: differentiate the loss of an experience, and apply.

        Args:
            e: the experience.
            fresh: it was gathered in this step, under the policy as it is.
            watch: told of what took how long.
        """
        step, every = self.state.step, self._config.noise_every
        doing("computing the gradient", step + 1)
        measure_noise = bool(every) and step % every == 0
        tally, sum_up = self._descent(e, fresh, measure_noise)
        watch.lap("gradient")
        tally |= tally_busy(watch.seconds)
        numbers = combine(tally, self._world.gather(as_row(tally)))
        noise = sum_up()
        watch.lap("reduce")
        update = self.updates.apply(live=self._always_live or numbers["live"] > 0)
        watch.lap("update")
        self._count(e, fresh, update)
        return self._stats(e, fresh, numbers, {**noise, **update}, watch.seconds)

    def _count(self, e: Experience, fresh: bool, update: Mapping[str, Any]) -> None:
        """Book a finished step."""
        self.non_finite = 0 if math.isfinite(update["grad_norm"]) else self.non_finite + 1
        self.state = replace(
            self.state,
            step=self.state.step + 1,
            samples=self.state.samples + (e.drawing.completions if fresh else 0),
            tokens=self.state.tokens + (e.drawing.tokens if fresh else 0),
            skipped_steps=self.state.skipped_steps + int(not update["updated"]),
        )

    def _stats(
        self,
        e: Experience,
        fresh: bool,
        numbers: Mapping[str, float],
        outcome: Mapping[str, Any],
        seconds: Mapping[str, float],
    ) -> StepStats:
        """The step that was just booked, for the log; its completions only where they are new."""
        metrics = {
            "step": self.state.step,
            "loss": numbers["loss"],
            **rollout_metrics(e.measures, list(e.scores.parts)),
            **e.drawing.metrics,
            **signal_metrics(numbers, e.num_completions),
            **outcome,
            **e.scores.metrics,
            **{name: numbers[name] for name in counted(e)},
            **seconds,
            "time/idle_s": idle_seconds(numbers, self._world.size),
            "tokens_per_second": e.drawing.tokens / sum(seconds.values()) if fresh else None,
        }
        rows = completion_rows(self.state.step, e) if fresh else []
        places = [place for place in e.places for _ in range(e.rollout.num_generations)]
        return StepStats(self.state.step, metrics, rows, places[: len(rows)])

    def gradient(self, rollout: Rollout, advantages: Tensor) -> dict[str, Tensor]:
        """∇L of a rollout by the very backward pass of a step; see `ReinforceTrainer.gradient`."""
        count = torch.tensor([len(rollout.completion_ids)])
        everybody = int(self._world.gather(count).sum())
        # The loss is linear in the log-probs, so the leaf's values do not matter; its precision
        # does, being that of the weights.
        leaf = rollout.sampling_logprobs.double()
        weights = token_weights(
            lambda logprobs, _: reinforce_loss(
                logprobs, rollout.completion_mask, advantages, everybody
            ),
            leaf,
            torch.zeros_like(leaf),
        )
        return self.backward.by_name(rollout, weights)

    def context(self) -> RewardContext:
        """Where training stands, for rewards that ask."""
        return RewardContext(self.state.step, self._config.max_steps, self._config.seed)

    def state_dict(self, keep: bool = True) -> dict[str, Any]:
        """Everything besides the weights that the next step depends on: tensors, plain values.

        It is the same on every process, which all call this; `rank_state` is what differs.

        Args:
            keep: False where the result is not needed, to hold no tensor that was put together.
        """
        return {
            "train_state": asdict(self.state),
            **self.updates.state_dict(keep),
            "lengths": self.gatherer.lengths.state_dict(),
            "course": self.gatherer.course.state_dict(),
            "non_finite": self.non_finite,
            "max_tokens": self.backward.max_tokens,
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.state = TrainState(**saved["train_state"])
        self.updates.load_state_dict(saved)
        self.gatherer.lengths.load_state_dict(saved["lengths"])
        self.gatherer.course.load_state_dict(saved.get("course", {}))
        self.non_finite = saved["non_finite"]
        self.backward.max_tokens = saved["max_tokens"]
        self._experience = None

    @property
    def in_window(self) -> bool:
        """Whether the next step goes on learning from the completions at hand."""
        return self.state.step % self._config.num_iterations != 0

    def rank_state(self) -> dict[str, Any]:
        """What this process alone knows: its random states, and the experience of a window."""
        e = self._experience
        kept = experience_state(e) if e is not None and self.in_window else None
        worst = self.gatherer.scorer.worst
        return {"random": random_states(), "experience": kept, "worst_rewards": worst}

    def load_rank_state(self, saved: Mapping[str, Any]) -> None:
        """Go on from what `rank_state` gave, after `load_state_dict`."""
        if saved["experience"] is not None:
            examples = self.gatherer.rows(saved["experience"]["keys"])
            self._experience = experience_from(saved["experience"], examples)
        self.gatherer.scorer.worst = saved["worst_rewards"]
        set_random_states(saved["random"])
