"""One optimizer step: gather experience, differentiate, apply.

Everything that decides the gradient is in this file and in `experience.py`, from top to bottom in
the order in which it happens. Files, screens and the length of the run are the trainer's business.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from rl4lm.assembly import Task
from rl4lm.backward import Backward
from rl4lm.config import ReinforceConfig
from rl4lm.diagnostics import (
    Tally,
    as_row,
    combine,
    idle_seconds,
    noise_metrics,
    signal_metrics,
    tally_advantages,
    tally_busy,
    tally_gap,
    tally_kl,
    tally_other_policy,
    tally_ratios,
)
from rl4lm.estimator.baselines import SCALES
from rl4lm.estimator.losses import TokenWeights, reinforce_loss, token_weights
from rl4lm.estimator.shaping import shaped_advantages
from rl4lm.experience import Gatherer
from rl4lm.metrics import Stopwatch, completion_rows, rollout_metrics
from rl4lm.model.policy import Policy
from rl4lm.model.reference import make_reference
from rl4lm.objective import direct_terms, loss_terms, total
from rl4lm.optim import make_optimizer, make_scheduler, scale_to_norm
from rl4lm.processes.activity import doing
from rl4lm.processes.sharding import dealt_like, whole_on_main
from rl4lm.processes.world import World
from rl4lm.rewarding.unanswered import is_count
from rl4lm.rundir.rank_state import (
    experience_from,
    experience_state,
    random_states,
    set_random_states,
)
from rl4lm.sampling.loop import EndRule
from rl4lm.scoring import RewardContext
from rl4lm.types import Experience, Rollout, StepStats, TrainState

NON_FINITE_LIMIT = 3  # steps in a row without a finite gradient after which a run stops


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
        self._policy = policy
        self._world = world
        budget = config.max_tokens_per_micro_batch
        reference = make_reference(policy, config.temperature, budget) if config.beta else None
        self.gatherer = Gatherer(config, policy, task, ends, reference, world)
        self._terms = loss_terms(config)
        self._always_live = bool(direct_terms(config))
        self.backward = Backward(policy, world, temperature=config.temperature, max_tokens=budget)
        self._optimizer = make_optimizer(config, self.backward.parameters)
        self._scheduler = make_scheduler(config, self._optimizer)
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
        step = self.state.step
        doing("computing the gradient", step + 1)
        measure_noise = bool(self._config.noise_every) and step % self._config.noise_every == 0
        tally, sum_up = self._differentiate(e, fresh, measure_noise)
        watch.lap("gradient")
        tally |= tally_busy(watch.seconds)
        numbers = combine(tally, self._world.gather(as_row(tally)))
        noise = sum_up()
        watch.lap("reduce")
        update = self._apply(live=self._always_live or numbers["live"] > 0)
        watch.lap("update")
        tokens = e.drawing.tokens if fresh else 0
        self.state = replace(
            self.state,
            step=step + 1,
            samples=self.state.samples + (e.drawing.completions if fresh else 0),
            tokens=self.state.tokens + tokens,
            skipped_steps=self.state.skipped_steps + int(not update["updated"]),
        )
        seconds = sum(watch.seconds.values())
        metrics = {
            "step": step + 1,
            "loss": numbers["loss"],
            **rollout_metrics(e.measures, list(e.scores.parts)),
            **e.drawing.metrics,
            **signal_metrics(numbers, e.num_completions),
            **noise,
            **update,
            **e.scores.metrics,
            **{name: numbers[name] for name in _counts(e)},
            **watch.seconds,
            "time/idle_s": idle_seconds(numbers, self._world.size),
            "tokens_per_second": tokens / seconds if fresh else None,
        }
        rows = completion_rows(step + 1, e) if fresh else []
        places = [place for place in e.places for _ in range(e.rollout.num_generations)]
        return StepStats(step + 1, metrics, rows, places[: len(rows)])

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
            "optimizer": whole_on_main(self._optimizer.state_dict(), keep),
            "scheduler": self._scheduler.state_dict(),
            "lengths": self.gatherer.lengths.state_dict(),
            "course": self.gatherer.course.state_dict(),
            "non_finite": self.non_finite,
            "max_tokens": self.backward.max_tokens,
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.state = TrainState(**saved["train_state"])
        self._optimizer.load_state_dict(self._dealt(saved["optimizer"]))
        self._scheduler.load_state_dict(saved["scheduler"])
        self.gatherer.lengths.load_state_dict(saved["lengths"])
        self.gatherer.course.load_state_dict(saved.get("course", {}))
        self.non_finite = saved["non_finite"]
        self.backward.max_tokens = saved["max_tokens"]
        self._experience = None

    def _dealt(self, optimizer: Mapping[str, Any]) -> dict[str, Any]:
        """A saved state of the optimizer, its moments dealt as the parameters are."""

        def like(value: Any, place: int) -> Any:
            parameter = self.backward.parameters[place]
            return dealt_like(value, parameter) if isinstance(value, Tensor) else value

        state = {
            place: {name: like(value, place) for name, value in moments.items()}
            for place, moments in optimizer["state"].items()
        }
        return {**optimizer, "state": state}

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

    def _differentiate(
        self, e: Experience, fresh: bool, measure_noise: bool
    ) -> tuple[Tally, Callable[[], dict[str, float | None]]]:
        """This process's part of ∇L of an experience into ``.grad``.

        Returns:
            This process's numbers about it, and what sums the gradient over the processes and
            gives the numbers about its noise. The processes meet over the first before the second.
        """
        epsilon = self._config.resolved_epsilon
        # With an importance ratio the weights depend on the policy as it is now: one more pass.
        logprobs = (e.policy_logprobs if epsilon is None else self._logprobs(e.rollout)).double()
        tally = Tally({"loss": float(self._loss(e)(logprobs, torch.zeros_like(logprobs)))}, {})
        tally |= tally_advantages(e)
        tally |= Tally(_counts(e), {})
        if epsilon is not None:
            tally |= tally_ratios(e, logprobs, epsilon)
        if self._config.beta:
            tally |= tally_kl(e)
        if measure_noise:
            met, sum_up = self._backward_and_noise(e, logprobs)
        else:
            met, sum_up = self.backward.whole(e.rollout, self._weights(e, logprobs)), self._sum_up
        if fresh:
            tally |= self._tally_sampler(e, logprobs, met)
        return tally, sum_up

    def _sum_up(self) -> dict[str, float | None]:
        self.backward.sum_over_processes()
        return {}

    def _tally_sampler(self, e: Experience, logprobs: Tensor, met: Tensor) -> Tally:
        """How far the policy is from what sampled: by rounding, or by a server's own weights."""
        if self._config.sampler_url is None:
            return tally_gap(e.rollout, met)
        return tally_other_policy(e, logprobs)

    def _loss(self, e: Experience) -> Callable[[Tensor, Tensor], Tensor]:
        return total(self._terms, e)

    def _weights(self, e: Experience, logprobs: Tensor) -> TokenWeights:
        """∂L/∂log π and ∂L/∂H of every token, where the policy's log-probs are these [B, T]."""
        return token_weights(self._loss(e), logprobs, torch.zeros_like(logprobs))

    def _logprobs(self, rollout: Rollout) -> Tensor:
        return self._policy.completion_logprobs(
            rollout, self._config.temperature, self.backward.max_tokens
        )

    def _backward_and_noise(
        self, e: Experience, logprobs: Tensor
    ) -> tuple[Tensor, Callable[[], dict[str, float | None]]]:
        """The backward pass, and how noisy the gradient is with the baseline and without it."""
        without = None
        # Divided by a deviation of their own the two would not be comparable.
        if self._config.resolved_baseline != "none" and self._config.scale_rewards == "none":
            nothing = torch.zeros_like(e.weights)
            plain = replace(
                e,
                advantages=shaped_advantages(
                    e.returns,
                    nothing,
                    e.weights,
                    e.scores.valid.flatten(),
                    e.rollout.completion_mask,
                ),
            )
            without = self.backward.in_halves(plain, self._weights(plain, logprobs))[1]()
        met, noise = self.backward.in_halves(e, self._weights(e, logprobs))
        scale = SCALES[self._config.resolved_baseline](
            e.num_completions // e.rollout.num_generations, e.rollout.num_generations
        )
        return met, lambda: noise_metrics(noise(), without, scale, e.num_completions)

    def _apply(self, live: bool) -> dict[str, Any]:
        """Clip and step the optimizer; without any advantage or a finite gradient, skip it.

        Every process decides alike, because all hold the same advantages and gradient bits.
        """
        norm = float(scale_to_norm(self.backward.parameters, self._config.max_grad_norm))
        learning_rate = self._scheduler.get_last_lr()[0]
        finite = math.isfinite(norm)
        self.non_finite = 0 if finite else self.non_finite + 1
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


def _counts(e: Experience) -> dict[str, float]:
    """What the scorer counted of this process's completions; the names are the same on all."""
    return {name: value for name, value in e.scores.metrics.items() if is_count(name)}
