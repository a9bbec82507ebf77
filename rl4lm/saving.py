"""Checkpoints of a run: when one is due, what it holds, and which ones stay."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rl4lm.config import ReinforceConfig
from rl4lm.data.examples import PromptData
from rl4lm.errors import DataError
from rl4lm.learner import Learner
from rl4lm.model.policy import Policy
from rl4lm.processes.world import World
from rl4lm.rundir.checkpoint import keep_newest, load_checkpoint, save_checkpoint, whole_weights
from rl4lm.rundir.provenance import layout
from rl4lm.rundir.resume import Start
from rl4lm.rundir.tracking import RunDirectory, checkpoint_path, checkpoints

_SAMPLED = 64  # rows of the data that are compared


class Checkpoints:
    """Saves and restores the state of a run; every process calls every method."""

    def __init__(
        self,
        config: ReinforceConfig,
        policy: Policy,
        learner: Learner,
        world: World,
        data: PromptData,
    ) -> None:
        """Take what is saved.

        Args:
            config: the options of the run.
            policy: whose weights.
            learner: whose state.
            world: the processes; the main one writes.
            data: the training prompts; another data set than the checkpoint's is found out.
        """
        self._config = config
        self._policy = policy
        self._learner = learner
        self._world = world
        self._data = {"rows": len(data), "sample": fingerprint(data)}
        self._saved_at = -1  # step of the last one
        self._scores: dict[int, float] = {}  # step -> accuracy, or reward, of an evaluation

    def due(self, step: int) -> bool:
        """Whether the options ask for a checkpoint after a step.

        With several updates of one sampling it waits for the last of them, where ``rl4lm replay``
        can begin.
        """
        every, window = self._config.save_steps, self._config.num_iterations
        if not every:
            return False
        passed = step // every > (step - window) // every
        return step == self._config.max_steps or (step % window == 0 and passed)

    def note_evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Remember how good the weights were after a step."""
        self._scores[step] = metrics.get("accuracy", metrics["reward"])

    def save(self, directory: RunDirectory | None, run: Mapping[str, Any]) -> Path | None:
        """Write a checkpoint of the run as it is, once a step, and remove those that need not stay.

        Args:
            directory: of the run, on the main process; None on others and where nothing is written.
            run: what the run's loop knows besides: plain values.

        Returns:
            The checkpoint, on the main process.

        Raises:
            SaveError: it cannot be written; what was saved before is still there.
        """
        step = self._learner.state.step
        ranks = self._world.collect([self._learner.rank_state()])
        weights = whole_weights(self._policy, keep=directory is not None)
        learned = self._learner.state_dict(keep=directory is not None)
        if directory is None:
            return None
        path = checkpoint_path(directory.path, step)
        if self._saved_at == step:
            return path
        directory.settle()  # a checkpoint must not be ahead of the log
        state = {
            "learner": learned,
            "ranks": ranks,
            "run": {**run, "scores": dict(self._scores)},
        }
        save_checkpoint(self._policy, path, weights, state, self._facts(step))
        self._saved_at = step
        keep_newest(directory.path, self._config.save_total_limit, self._best(directory.path))
        return path

    def restore(self, start: Start) -> dict[str, Any]:
        """Put weights and state of a checkpoint in place.

        Args:
            start: with a checkpoint.

        Returns:
            What `save` was given as `run`.

        Raises:
            DataError: it is damaged, of another model, or of other data, or was saved within a
                window of updates by another number of processes.
        """
        assert start.checkpoint is not None
        assert start.facts is not None
        then = start.facts["data"]
        if then != self._data and not self._config.resume_anyway:
            raise DataError(
                f"{start.checkpoint.name} was saved by a run on other training data: "
                f"{then['rows']} rows then, {self._data['rows']} now, and of those looked at some "
                "differ; give the same data, or pass --resume_anyway"
            )
        state = load_checkpoint(start.checkpoint, self._policy)
        self._learner.load_state_dict(state["learner"])
        self._restore_rank(start.checkpoint.name, state["ranks"])
        run = dict(state["run"])
        self._scores = run.pop("scores")
        self._saved_at = self._learner.state.step if start.in_place else -1
        return run

    def _restore_rank(self, name: str, ranks: list[dict[str, Any]]) -> None:
        if len(ranks) == self._world.size:
            self._learner.load_rank_state(ranks[self._world.rank])
        elif self._learner.in_window:
            raise DataError(
                f"{name} was saved between the updates of one sampling (num_iterations="
                f"{self._config.num_iterations}) by {len(ranks)} processes, which hold its "
                f"completions; there are {self._world.size} now: start as many, or resume from a "
                "checkpoint at a multiple of num_iterations"
            )

    def _facts(self, step: int) -> dict[str, Any]:
        return {
            "step": step,
            "config": self._config.to_dict(),
            "layout": layout(self._world),
            "data": self._data,
        }

    def _best(self, run: Path) -> int | None:
        """The checkpoint with the best evaluation; of equals the newest."""
        scored = {
            step: self._scores[step]
            for step in checkpoints(run)
            if not math.isnan(self._scores.get(step, math.nan))
        }
        return max(scored, key=lambda step: (scored[step], step)) if scored else None


def fingerprint(data: PromptData) -> str:
    """A hash of some rows from all over a split; two splits that share it are taken for one."""
    places = sorted({k * (len(data) - 1) // (_SAMPLED - 1) for k in range(_SAMPLED)})
    rows = [[example.prompt, dict(example.columns)] for example in data.examples(places)]
    return hashlib.sha256(json.dumps(rows, sort_keys=True, default=str).encode()).hexdigest()[:16]
