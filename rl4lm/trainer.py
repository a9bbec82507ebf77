"""A run from beginning to end: assemble, evaluate, learn, evaluate, save.

What a step does is in `learner.py`, what is told of it in `journal.py`; this file keeps the order
of things, and the clock.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from rl4lm.assembly import Task, assemble_policy, assemble_task, end_rule, fit_task
from rl4lm.config import ReinforceConfig
from rl4lm.eightbit import check_optimizer, check_replicated
from rl4lm.errors import (
    EngineError,
    RewardError,
    RewardFailedError,
    SaveError,
    Stopped,
    TrainingError,
)
from rl4lm.evaluation.evaluate import Evaluated
from rl4lm.evaluation.examining import Examiner
from rl4lm.evaluation.exams import evaluation_of
from rl4lm.export.publishing import begin_publishing, publish
from rl4lm.journal import Journal
from rl4lm.learner import NON_FINITE_LIMIT, Learner
from rl4lm.metrics import peak_memory_bytes
from rl4lm.processes.activity import SAVING, doing
from rl4lm.processes.stopping import StopRequest
from rl4lm.processes.world import World
from rl4lm.rewarding.lookup import Reward
from rl4lm.rewarding.models import listed
from rl4lm.rundir.checkpoint import save_weights, whole_weights
from rl4lm.rundir.provenance import given_in_python
from rl4lm.rundir.resume import Start, agree, check_output, find_start
from rl4lm.rundir.tracking import checkpoints, write_unscored
from rl4lm.sampling.offpolicy import check_off_policy
from rl4lm.sampling.served import check_server
from rl4lm.saving import Checkpoints, unsaved
from rl4lm.screen.console import Screen
from rl4lm.trackers import check_trackers
from rl4lm.types import Rollout, StepStats, TrainState


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
        reward_processing_classes: Any = None,
    ) -> None:
        """Put a run together and check it; nothing is written yet.

        Args:
            model: a name, a directory or a model object; None means ``args.model_name_or_path``.
            reward_funcs: one or several callables, names or sequence classifiers; None means
                ``args.reward_funcs``.
            args: the configuration; None means the defaults.
            train_dataset: rows with the prompt column; None means ``args.dataset_name``.
            eval_dataset: rows to evaluate on, or a mapping of names to such; None means
                ``args.dataset_test_split``. The first one's numbers go by their own names.
            processing_class: the tokenizer; None means the model's own.
            peft_config: an adapter to train; None means that ``args.use_peft`` decides.
            callbacks: told of every finished step.
            screen: where progress is shown; None means the standard output.
            reward_processing_classes: tokenizers of the reward models among ``reward_funcs``, None
                for functions; None means their own.

        Raises:
            Rl4lmError: one of its kinds, in words, for whatever cannot be used.
        """
        config = args or ReinforceConfig()
        if isinstance(model, str | Path):  # one place says which model it is
            config, model = replace(config, model_name_or_path=str(model)), None
        self.config = config
        self.world = World(config.ddp_timeout)
        self.world.advise(self._how_to_go_on)
        self.world.use_threads(config.torch_threads)
        self.world.check_divides(config.prompts_per_step, "prompts_per_step")
        check_output(config)
        check_off_policy(config)
        check_trackers(config.report_to or ())
        check_optimizer(config)
        check_replicated(config, self.world.sharding is not None)
        check_server(config, config.temperature)
        screen = screen or Screen(logging_steps=config.logging_steps)
        screen.only_if(self.world.is_main)
        rewards = listed(reward_funcs, reward_processing_classes)
        task = assemble_task(config, rewards, train_dataset, eval_dataset)
        self.task: Task = fit_task(config, model, processing_class, task)
        self.policy, notes = assemble_policy(
            config, model, processing_class, peft_config, self.task.splits, self.world
        )
        self._ends = end_rule(config, self.policy)
        self.learner = Learner(config, self.policy, self.task, self._ends, self.world)
        self._checkpoints = Checkpoints(
            config, self.policy, self.learner, self.world, self.task.train
        )
        what = evaluation_of(config, self._ends)
        self._examiner = Examiner(self.policy, self.task.exams, what, self.world)
        self._seconds = 0.0  # of training, evaluations left out
        self._callbacks = list(callbacks or [])
        given = given_in_python(
            model=model,
            processing_class=processing_class,
            peft_config=peft_config,
            reward_funcs=rewards,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
        )
        self._journal = Journal(config, self.policy, self.world, screen, given)
        self._journal.introduce(self.task, notes)

    @property
    def screen(self) -> Screen:
        """Where progress is shown."""
        return self._journal.screen

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

    def train(self, resume_from_checkpoint: str | bool | None = None) -> dict[str, Any]:
        """Evaluate, train, evaluate again, and save.

        Args:
            resume_from_checkpoint: the folder of a checkpoint, or True for the newest complete one
                of the output directory; None means ``args.resume_from_checkpoint``.

        Returns:
            What ``summary.json`` holds: ``eval_before`` and ``eval_after`` (metric -> value),
            ``steps``, ``samples``, ``tokens``, ``train_seconds``, ``peak_memory_bytes``, ``seed``,
            ``version`` and more.

        Raises:
            Rl4lmError: one of its kinds, for what cannot be used or goes wrong; `PeerLostError`
                where that is another process.
            Stopped: Ctrl-C or SIGTERM; the step in hand was finished and a checkpoint saved.
        """
        begin_publishing(self.config, self.world)
        with self.task.judges.scorer:  # the processes of rewards end with the run
            start = find_start(self.config, resume_from_checkpoint)
            try:
                summary = self._train(agree(start, self.world.gather_lists))
            finally:
                self._journal.close()
        publish(self.config, self._journal.directory, self.screen, summary)
        return summary

    def _train(self, start: Start) -> dict[str, Any]:
        self._begin(start)
        self._journal.foretell(self.learner.gatherer, self.state.step)
        if start.checkpoint is None:
            self._examiner.before = self._examine("before training")
        self._loop()
        doing(SAVING)
        weights = whole_weights(self.policy, keep=self._journal.directory is not None)
        if self._journal.directory is not None:
            save_weights(self.policy, self._journal.directory.path / "model", weights)
        summary = self._summary(self._examine("after training"))
        if self._journal.directory is not None:
            self._journal.directory.settle()
            self._journal.directory.write_summary(summary)
            self._journal.report()
        self._show_result(summary)
        self.world.wait()
        return summary

    def _begin(self, start: Start) -> None:
        """Stand where the run is to begin; nothing is written yet."""
        self._journal.begin(start, 0)
        self.world.wait()  # so that no process sees what another has begun to write
        for note in start.notes:
            self.screen.warn(note)
        if start.checkpoint is None:
            return
        run = self._checkpoints.restore(start)
        self._seconds = run["train_seconds"]
        self._examiner.load_state_dict(run["eval_before"], run.get("eval_state", {}))
        self._journal.begin(start, run["evaluations"] if start.in_place else 0)
        self.screen.note(f"resumed from {start.checkpoint}, after step {self.state.step}")

    def evaluate(self) -> dict[str, float]:
        """How good the completions of held-out prompts are; empty where evaluation is off."""
        doing("evaluating", self.state.step)
        return self._examiner(self.learner.context()).metrics

    def _examine(self, when: str) -> Evaluated:
        """An evaluation that is logged and shown."""
        doing("evaluating", self.state.step)
        found = self._examiner(self.learner.context())
        if found.metrics:
            self._journal.evaluation(self.state.step, when, found)
            self._checkpoints.note_evaluation(self.state.step, found.metrics)
        return found

    def _loop(self) -> None:
        """The steps of the run."""
        config = self.config
        self.screen.start(self.state.step, config.max_steps)
        try:
            with StopRequest(speaks=self.world.is_main) as stop:
                while self.state.step < config.max_steps:
                    began = time.monotonic()
                    stats = self._step()
                    self._seconds += time.monotonic() - began
                    self._after_step(stats)
                    if self._is_over(stop):
                        break
        finally:
            self.screen.stop()

    def _step(self) -> StepStats:
        """One step; what a reward failed on is kept, and what was learned before a server went."""
        tokens = self.learner.backward.max_tokens
        try:
            stats = self.learner.step()
        except (RewardError, RewardFailedError) as error:
            raise self._with_unscored(error) from error.__cause__
        except EngineError as error:
            raise self._with_last_words(error) from None
        if self.learner.backward.max_tokens < tokens:
            self.screen.warn(
                f"step {stats.step}: out of memory in the training pass; the step was made again "
                f"with micro-batches of {self.learner.backward.max_tokens} tokens instead of "
                f"{tokens}, and so will all later ones"
            )
        return stats

    def _with_unscored(self, error: RewardError | RewardFailedError) -> Exception:
        """The error, after its completions were written where they can be scored again."""
        if self.config.output_dir is None or not error.sampled:
            return error
        step, rank = self.state.step + 1, self.world.rank
        try:
            path = write_unscored(Path(self.config.output_dir), step, rank, error.sampled)
        except SaveError as full:  # must not hide what the reward did
            return type(error)(f"{error}\nthe completions of step {step} are not kept: {full}")
        return type(error)(
            f"{error}\nthe completions of step {step} are kept: rl4lm score --reward NAME --data "
            f"{path} asks the reward about them again"
        )

    def _with_last_words(self, error: EngineError) -> EngineError:
        """The error, after what was learned before it was saved."""
        # To save is to talk to all processes, and those whose server is well are not here.
        if self.state.step == 0 or self.world.size > 1:
            return error
        return EngineError(f"{error}\n{self._last_words()}")

    def _after_step(self, stats: StepStats) -> None:
        """Log a finished step, tell whoever listens, evaluate and save where that is due."""
        self._journal.step(stats)
        for callback in self._callbacks:
            callback.on_step_end(self.state, stats)
        if self.config.eval_steps and stats.step % self.config.eval_steps == 0:
            self._examine(f"at step {stats.step}")
        finite = math.isfinite(stats.metrics["grad_norm"] or 0.0)
        # The step changed nothing: from the checkpoint after it, it can be looked at again.
        if self._checkpoints.due(stats.step) or (not finite and self.learner.non_finite == 1):
            self._save()
        if self.learner.non_finite >= NON_FINITE_LIMIT:
            raise TrainingError(
                f"the gradient was not finite for {NON_FINITE_LIMIT} steps in a row; lower the "
                "learning rate or the precision's risk (dtype float32), and look at the rewards; "
                f"their completions are in completions/, from step "
                f"{stats.step - NON_FINITE_LIMIT + 1} on"
            )

    def _is_over(self, stop: StopRequest) -> bool:
        """Whether the time is up; on all processes alike, as for a signal that any has received.

        Raises:
            Stopped: there was a signal; says what was saved.
        """
        mine = torch.tensor([[self._seconds, float(stop.number)]], dtype=torch.float64)
        seconds, number = self.world.gather(mine).amax(dim=0).tolist()
        if number:
            raise Stopped(int(number), self._last_words())
        return self.config.max_time is not None and seconds >= self.config.max_time

    def _last_words(self) -> str:
        """Save, and say how to go on."""
        done = f"after step {self.state.step} of {self.config.max_steps}"
        path = self._save()
        if path is None:
            return f"{done}; nothing is saved"
        return (
            f"{done}; saved in {path}: the same command with --resume_from_checkpoint true goes on "
            "from there"
        )

    def _save(self) -> Path | None:
        """Write a checkpoint; returns it, or None where there is none or it could not be written.

        A full disk ends no run: what was saved before stays, and the next save tries again.
        """
        doing(SAVING, self.state.step)
        run = {
            "eval_before": self._examiner.before.metrics,
            "eval_state": self._examiner.state_dict(),
            "train_seconds": self._seconds,
            "evaluations": self._journal.evaluations,
        }
        try:
            return self._checkpoints.save(self._journal.directory, run)
        except SaveError as error:
            assert self._journal.directory is not None
            saved = list(checkpoints(self._journal.directory.path).values())
            self.screen.warn(unsaved(error, saved[-1] if saved else None))
            return None

    def _how_to_go_on(self) -> str:
        """What to do after a failure of another process."""
        if self.config.output_dir is None:
            return ""
        saved = list(checkpoints(Path(self.config.output_dir)).values())
        if not saved:
            return "no checkpoint was saved yet (save_steps): the same command starts over"
        return f"--resume_from_checkpoint true with the same command goes on from {saved[-1]}"

    def _summary(self, after: Evaluated) -> dict[str, Any]:
        state = self.state
        peaks = self.world.gather(torch.tensor([peak_memory_bytes(self.world.device)]))
        return {
            "eval_before": self._examiner.before.metrics,
            "eval_after": after.metrics,
            "eval_change": self._examiner.change(after),
            "eval_on": self.task.evaluation.split if self.task.held_out else "train",
            "steps": state.step,
            "skipped_steps": state.skipped_steps,
            "samples": state.samples,
            "dropped_prompts": self.task.dropped,
            "tokens": state.tokens,
            "train_seconds": self._seconds,
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
        before, after, change = (summary[f"eval_{n}"] for n in ("before", "after", "change"))
        self.screen.before_after(before, after, change, footer)
