"""A run from beginning to end: evaluate, learn, evaluate, save.

What a step does is in `rl4lm.learner`, what is told of it in `rl4lm.journal`; this file keeps the
order of things, and the clock.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import torch

from rl4lm.assembly import Task
from rl4lm.config import ReinforceConfig
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
from rl4lm.interrupted import last_words, unsaved, with_unscored
from rl4lm.journal import Journal
from rl4lm.learner import Learner
from rl4lm.metrics import peak_memory_bytes
from rl4lm.model.policy import Policy
from rl4lm.processes.activity import SAVING, doing
from rl4lm.processes.stopping import StopRequest
from rl4lm.processes.world import World
from rl4lm.rundir.checkpoint import save_weights, whole_weights
from rl4lm.rundir.resume import Start, evaluates_alike
from rl4lm.saving import Checkpoints
from rl4lm.types import StepStats, TrainState

_NON_FINITE_LIMIT = 3  # steps in a row without a finite gradient after which a run stops
_AFTER = "after training"  # what the screen calls the last evaluation


class Callback(Protocol):
    """Anything that wants to hear of finished steps."""

    def on_step_end(self, state: TrainState, stats: StepStats) -> None:
        """Called on every process after each optimizer step."""


@dataclass
class Run:
    """The parts of a run and the order in which they act; every process calls every method."""

    config: ReinforceConfig
    task: Task
    policy: Policy
    learner: Learner
    world: World
    examiner: Examiner
    checkpoints: Checkpoints
    journal: Journal
    callbacks: Sequence[Callback]  # told of every finished step
    seconds: float = field(default=0.0, init=False)  # of training, evaluations left out

    @property
    def state(self) -> TrainState:
        """What has been done so far."""
        return self.learner.state

    def go(self, start: Start) -> dict[str, Any]:
        """From where the run begins to its summary, which is returned."""
        self._begin(start)
        self.journal.foretell(self.learner.gatherer, self.state.step)
        if start.checkpoint is None:
            self.examiner.before = self._examine("before training")
        self._loop()
        self._save_weights()
        after = self.examiner.known(self.state.step) or self._examine(_AFTER)
        summary = self._summary(after)
        self.journal.end(summary)
        self.world.wait()
        return summary

    def _begin(self, start: Start) -> None:
        """Stand where the run is to begin; nothing is written yet."""
        self.world.wait()  # so that no process sees what another has begun to write
        for note in start.notes:
            self.journal.screen.warn(note)
        if start.checkpoint is None:
            self.journal.begin(start, 0)
            return
        run = self.checkpoints.restore(start)
        self.seconds = run["train_seconds"]
        alike = evaluates_alike(self.config, start)
        self.examiner.load_state_dict(run["eval_before"], run.get("eval_state", {}), alike)
        self.journal.begin(start, run["evaluations"] if start.in_place else 0)
        self.journal.screen.note(f"resumed from {start.checkpoint}, after step {self.state.step}")

    def _loop(self) -> None:
        """The steps of the run."""
        self.journal.screen.start(self.state.step, self.config.max_steps)
        try:
            with StopRequest(speaks=self.world.is_main) as stop:
                while self.state.step < self.config.max_steps:
                    began = time.monotonic()
                    stats = self._step()
                    self.seconds += time.monotonic() - began
                    self._after_step(stats)
                    if self._is_over(stop):
                        break
        finally:
            self.journal.screen.stop()

    def _step(self) -> StepStats:
        """One step; what a reward failed on is kept, and what was learned before a server went."""
        budget = self.learner.backward.max_tokens
        try:
            stats = self.learner.step()
        except (RewardError, RewardFailedError) as error:
            step, rank = self.state.step + 1, self.world.rank
            raise with_unscored(error, self.config.output_dir, step, rank) from error.__cause__
        except EngineError as error:
            # To save is to talk to all processes, and those whose server is well are not here.
            if self.state.step == 0 or self.world.size > 1:
                raise
            raise EngineError(f"{error}\n{self._last_words()}") from None
        if self.learner.backward.max_tokens < budget:
            self.journal.out_of_memory(stats.step, budget, self.learner.backward.max_tokens)
        return stats

    def _after_step(self, stats: StepStats) -> None:
        """Log a finished step, tell whoever listens, evaluate and save where that is due."""
        self.journal.step(stats)
        for callback in self.callbacks:
            callback.on_step_end(self.state, stats)
        if self.config.eval_steps and stats.step % self.config.eval_steps == 0:
            is_last = stats.step == self.config.max_steps
            self._examine(_AFTER if is_last else f"at step {stats.step}")
        finite = math.isfinite(stats.metrics["grad_norm"] or 0.0)
        # The step changed nothing: from the checkpoint after it, it can be looked at again.
        if self.checkpoints.due(stats.step) or (not finite and self.learner.non_finite == 1):
            self._save()
        if self.learner.non_finite >= _NON_FINITE_LIMIT:
            raise TrainingError(
                f"the gradient was not finite for {_NON_FINITE_LIMIT} steps in a row; lower the "
                "learning rate or the precision's risk (dtype float32), and look at the rewards; "
                f"their completions are in completions/, from step "
                f"{stats.step - _NON_FINITE_LIMIT + 1} on"
            )

    def _is_over(self, stop: StopRequest) -> bool:
        """Whether the time is up; on all processes alike, as for a signal that any has received.

        Raises:
            Stopped: there was a signal; says what was saved.
        """
        mine = torch.tensor([[self.seconds, float(stop.number)]], dtype=torch.float64)
        seconds, number = self.world.gather(mine).amax(dim=0).tolist()
        if number:
            raise Stopped(int(number), self._last_words())
        return self.config.max_time is not None and seconds >= self.config.max_time

    def _last_words(self) -> str:
        """Save, and say how to go on."""
        return last_words(self.state.step, self.config.max_steps, self._save())

    def evaluate(self) -> Evaluated:
        """The completions of held-out prompts, by the policy as it is."""
        doing("evaluating", self.state.step)
        return self.examiner(self.learner.context())

    def _examine(self, when: str) -> Evaluated:
        """An evaluation that is logged and shown."""
        found = self.evaluate()
        if found.metrics:
            self.journal.evaluation(self.state.step, when, found)
            self.examiner.note(self.state.step, found)
            self.checkpoints.note_evaluation(self.state.step, found.metrics)
        return found

    def _save(self) -> Path | None:
        """Write a checkpoint; returns it, or None where there is none or it could not be written.

        A full disk ends no run: what was saved before stays, and the next save tries again.
        """
        doing(SAVING, self.state.step)
        run = {
            "eval_before": self.examiner.before.metrics,
            "eval_state": self.examiner.state_dict(),
            "train_seconds": self.seconds,
            "evaluations": self.journal.evaluations,
        }
        try:
            return self.checkpoints.save(self.journal.directory, run)
        except SaveError as error:
            assert self.journal.directory is not None
            self.journal.screen.warn(unsaved(error, self.journal.directory.path))
            return None

    def _save_weights(self) -> None:
        doing(SAVING)
        directory = self.journal.directory
        weights = whole_weights(self.policy, keep=directory is not None)
        if directory is not None:
            save_weights(self.policy, directory.path / "model", weights)

    def _summary(self, after: Evaluated) -> dict[str, Any]:
        state = self.state
        peaks = self.world.gather(torch.tensor([peak_memory_bytes(self.world.device)]))
        return {
            "eval_before": self.examiner.before.metrics,
            "eval_after": after.metrics,
            "eval_change": self.examiner.change(after),
            "eval_on": self.task.evaluation.split if self.task.held_out else "train",
            "steps": state.step,
            "skipped_steps": state.skipped_steps,
            "samples": state.samples,
            "dropped_prompts": self.task.dropped,
            "tokens": state.tokens,
            "train_seconds": self.seconds,
            "peak_memory_bytes": int(peaks.max()),
            "seed": self.config.seed,
            "processes": self.world.size,
            "version": version("rl4lm"),
        }
