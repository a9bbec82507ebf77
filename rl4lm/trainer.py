"""A run from beginning to end: assemble, evaluate, learn, evaluate, save.

What a step does is in `learner.py`; this file keeps the files, the screen and the clock.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from rl4lm.assembly import Task, assemble_policy, assemble_task, end_rule
from rl4lm.checkpoint import checkpoint_path, save_weights
from rl4lm.config import OPTIONS, ReinforceConfig
from rl4lm.console import Screen
from rl4lm.diagnostics import gap_is_suspicious
from rl4lm.errors import ConfigError
from rl4lm.evaluate import evaluate
from rl4lm.learner import Learner
from rl4lm.metrics import peak_memory_bytes
from rl4lm.preparing import describe
from rl4lm.provenance import given_in_python, layout
from rl4lm.refusals import unknown_option
from rl4lm.reward_lookup import Reward
from rl4lm.tracking import RunDirectory, check_run_directory, prepare_run_directory
from rl4lm.types import Rollout, StepStats, TrainState
from rl4lm.world import World


class Callback(Protocol):
    """Anything that wants to hear of finished steps."""

    def on_step_end(self, state: TrainState, stats: StepStats) -> None:
        """Called on every process after each optimizer step."""


class ReinforceTrainer:
    """Fine-tunes a causal language model by sequence-level REINFORCE on rule-based rewards.

    The gradient of a step is that of ``L = -(1/N) Σ_i (r_i - b_i) · log π(o_i|q_i)`` over the
    N = prompts_per_step · num_generations completions of all processes (Williams, 1992).
    """

    def __init__(
        self,
        model: Any = None,
        reward_funcs: str | Reward | Sequence[str | Reward] | None = None,
        args: ReinforceConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        peft_config: Any = None,
        callbacks: Sequence[Callback] | None = None,
        screen: Screen | None = None,
    ) -> None:
        """Put a run together and check it; nothing is written yet.

        Args:
            model: a name, a directory or a model object; None means ``args.model_name_or_path``.
            reward_funcs: one or several callables or names; None means ``args.reward_funcs``.
            args: the configuration; None means the defaults.
            train_dataset: rows with the prompt column; None means ``args.dataset_name``.
            eval_dataset: rows to evaluate on; None means ``args.dataset_test_split``.
            processing_class: the tokenizer; None means the model's own.
            peft_config: an adapter to train; None means that ``args.use_peft`` decides.
            callbacks: told of every finished step.
            screen: where progress is shown; None means the standard output.

        Raises:
            Rl4lmError: one of its kinds, in words, for whatever cannot be used.
        """
        config = args or ReinforceConfig()
        if isinstance(model, str | Path):  # one place says which model it is
            config, model = replace(config, model_name_or_path=str(model)), None
        self.config = config
        self.world = World()
        self.world.use_threads(config.torch_threads)
        self.world.share(config.prompts_per_step, "prompts_per_step")
        self._check_output()
        self.screen = screen or Screen(logging_steps=config.logging_steps)
        self.screen.only_if(self.world.is_main)
        self.task: Task = assemble_task(config, _listed(reward_funcs), train_dataset, eval_dataset)
        splits = [self.task.train, self.task.evaluation]
        self.policy, notes = assemble_policy(
            config, model, processing_class, peft_config, splits, self.world
        )
        self._ends = end_rule(config, self.policy)
        self.learner = Learner(config, self.policy, self.task, self._ends, self.world)
        self._callbacks = list(callbacks or [])
        self._given = given_in_python(
            model=model,
            processing_class=processing_class,
            peft_config=peft_config,
            reward_funcs=_listed(reward_funcs),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
        )
        self._introduce(notes)

    @property
    def state(self) -> TrainState:
        """What has been done so far."""
        return self.learner.state

    def gradient(self, rollout: Rollout, advantages: Tensor) -> dict[str, Tensor]:
        """∇L of a rollout by the very backward pass that a training step makes.

        ``L = -(1/N) Σ_i Σ_t A_{i,t} log π(o_{i,t})``; the descent direction is its negative.

        Args:
            rollout: this process's completions; N counts those of all processes.
            advantages: constants, [B] per completion or [B, T] per token.

        Returns:
            Name in ``named_parameters()`` of the unwrapped model -> gradient, trainable
            parameters only, summed over the processes, before any clipping of its norm.

        Raises:
            ValueError: advantages that fit neither [B] nor [B, T].
        """
        return self.learner.gradient(rollout, advantages)

    def train(self, resume_from_checkpoint: None = None) -> dict[str, Any]:
        """Evaluate, train, evaluate again, and save.

        Args:
            resume_from_checkpoint: must be None; resuming is not in this version.

        Returns:
            What ``summary.json`` holds: ``eval_before`` and ``eval_after`` (metric -> value),
            ``steps``, ``samples``, ``tokens``, ``train_seconds``, ``peak_memory_bytes``, ``seed``,
            ``version`` and more.
        """
        if resume_from_checkpoint is not None:
            raise ConfigError(unknown_option("resume_from_checkpoint", ()))
        before = self.evaluate()
        self._record_evaluation("before training", before)
        seconds = self._loop()
        after = self.evaluate()
        self._record_evaluation("after training", after)
        summary = self._summary(before, after, seconds)
        if self._directory is not None:
            save_weights(self.policy, self._directory.path / "model")
            self._directory.write_summary(summary)
        self._show_result(summary)
        self.world.wait()
        return summary

    def evaluate(self) -> dict[str, float]:
        """Greedy completions of the held-out prompts, scored; empty where evaluation is off."""
        if not self.config.eval_samples:
            return {}
        return evaluate(
            self.policy,
            self.task.evaluation,
            self.task.judges.scorer,
            self.task.judges.accuracy,
            samples=self.config.eval_samples,
            max_completion_length=self.config.max_completion_length,
            ends=self._ends,
            context=self.learner.context(),
            world=self.world,
        )

    def _loop(self) -> float:
        """The steps of the run; returns the seconds spent in them, evaluations left out."""
        config, started, evaluating = self.config, time.monotonic(), 0.0
        self.screen.start(self.state.step, config.max_steps)
        try:
            while self.state.step < config.max_steps:
                stats = self.learner.step()
                self._record_step(stats)
                self._save(stats.step)
                for callback in self._callbacks:
                    callback.on_step_end(self.state, stats)
                if config.eval_steps and stats.step % config.eval_steps == 0:
                    pause = time.monotonic()
                    self._record_evaluation(f"at step {stats.step}", self.evaluate())
                    evaluating += time.monotonic() - pause
                if self._time_is_up(time.monotonic() - started - evaluating):
                    break
        finally:
            self.screen.stop()
        return time.monotonic() - started - evaluating

    def _time_is_up(self, seconds: float) -> bool:
        """Whether `max_time` has passed on any process, so that all stop after the same step."""
        if self.config.max_time is None:
            return False
        return bool(self.world.gather(torch.tensor([seconds])).max() >= self.config.max_time)

    def _check_output(self) -> None:
        if self.config.output_dir is not None:
            check_run_directory(Path(self.config.output_dir), self.config.overwrite_output_dir)
        self.world.wait()  # so that no process sees what another has begun to write

    @cached_property
    def _directory(self) -> RunDirectory | None:
        """The run directory on the main process, None elsewhere or where nothing is written.

        Made when there is something to write, so that a reward that breaks at its first call
        costs no earlier run its files.
        """
        if self.config.output_dir is None or not self.world.is_main:
            return None
        directory = prepare_run_directory(Path(self.config.output_dir))
        directory.write_config(self.config.to_dict(), {**layout(self.world), **self._given})
        return directory

    def _record_step(self, stats: StepStats) -> None:
        rows = self.world.gather_lists(stats.completions)
        if self._directory is not None:
            self._directory.log_step(stats.metrics)
            if rows:  # a further step on the same completions has none of its own
                self._directory.log_completions(stats.step, rows)
        self.screen.step(stats.step, stats.metrics)
        every = self.config.sample_table_steps
        if rows and every and (stats.step - 1) % every < self.config.num_iterations:
            # One of each prompt: the samples of one prompt look much alike.
            self.screen.completions(stats.step, [row for row in rows if row["sample"] == 0])
        if not stats.metrics["updated"]:
            self.screen.skipped(stats.step, stats.metrics)
        dtype = self.policy.compute_dtype
        if gap_is_suspicious(stats.metrics, dtype):
            self.screen.gap(stats.step, stats.metrics, str(dtype).removeprefix("torch."))

    def _save(self, step: int) -> None:
        """Write a checkpoint where one is due; between samplings only, as a start needs."""
        every, window = self.config.save_steps, self.config.num_iterations
        if not every or step % window or step // every == (step - window) // every:
            return
        if self._directory is not None:
            path = checkpoint_path(self._directory.path, step)
            save_weights(self.policy, path, self.learner.state_dict())

    def _record_evaluation(self, when: str, metrics: dict[str, float]) -> None:
        if not metrics:
            return
        if self._directory is not None:
            self._directory.log_eval({"step": self.state.step, **metrics})
        self.screen.evaluation(when, metrics)

    def _introduce(self, notes: Sequence[str]) -> None:
        sizes = describe(self.policy.module.model)
        threads = torch.get_num_threads()
        self.screen.note(
            f"{sizes['parameters']:,} parameters, {sizes['trainable']:,} of them trained; "
            f"{self.config.prompts_per_step} prompts x {self.config.num_generations} completions "
            f"a step, baseline {self.config.resolved_baseline}; {self.world.size} "
            f"process{'es' if self.world.size > 1 else ''} on {self.world.device.type}, "
            f"{threads} thread{'s' if threads > 1 else ''}"
        )
        names = ", ".join(self.task.judges.scorer.names)
        self.screen.note(f"rewards: {names}; called in this process, without a time limit")
        named = self.config.reward_funcs != OPTIONS["reward_funcs"].default
        if named and "reward_funcs given in Python" in self._given:
            self.screen.warn("reward_funcs of the configuration is not used: functions were given")
        if not self.task.held_out and self.config.eval_samples:
            self.screen.note(
                f"there is no split {self.config.dataset_test_split!r}: before and after are "
                "measured on training prompts"
            )
        for note in notes:
            self.screen.note(note)

    def _summary(
        self, before: dict[str, float], after: dict[str, float], seconds: float
    ) -> dict[str, Any]:
        state = self.state
        peaks = self.world.gather(torch.tensor([peak_memory_bytes(self.world.device)]))
        return {
            "eval_before": before,
            "eval_after": after,
            "eval_on": self.task.evaluation.split if self.task.held_out else "train",
            "steps": state.step,
            "skipped_steps": state.skipped_steps,
            "samples": state.samples,
            "tokens": state.tokens,
            "train_seconds": seconds,
            "peak_memory_bytes": int(peaks.max()),
            "seed": self.config.seed,
            "processes": self.world.size,
            "version": version("rl4lm"),
        }

    def _show_result(self, summary: dict[str, Any]) -> None:
        footer = (
            f"{summary['steps']} steps, {summary['samples']:,} completions in "
            f"{summary['train_seconds']:.0f} s of training, "
            f"{summary['peak_memory_bytes'] / 1e6:,.0f} MB at most"
        )
        if self.config.output_dir is not None:
            footer += f"; weights in {Path(self.config.output_dir) / 'model'}"
        self.screen.before_after(summary["eval_before"], summary["eval_after"], footer)


def _listed(
    reward_funcs: str | Reward | Sequence[str | Reward] | None,
) -> Sequence[str | Reward] | None:
    """One reward or several as a list."""
    if isinstance(reward_funcs, str) or callable(reward_funcs):
        return [reward_funcs]
    return reward_funcs
