"""The evaluations of a run: the first one is kept, so that the last can be compared with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rl4lm.evaluation.evaluate import Evaluated, Evaluation, Exam, evaluate
from rl4lm.evaluation.paired import compare_all
from rl4lm.model.policy import Policy
from rl4lm.processes.world import World
from rl4lm.scoring import RewardContext

NOTHING = Evaluated({}, {}, "", [])


class Examiner:
    """Evaluates a policy as it is; every process calls every method."""

    def __init__(
        self, policy: Policy, exams: Sequence[Exam], what: Evaluation, world: World
    ) -> None:
        """Take what is evaluated, on what, and how.

        Args:
            policy: at whatever stage of training.
            exams: the data sets.
            what: with no samples, evaluation is off.
            world: the processes.
        """
        self._policy = policy
        self._exams = exams
        self._what = what
        self._world = world
        self.before = NOTHING  # the evaluation before the first step

    def __call__(self, context: RewardContext) -> Evaluated:
        """The policy on all data sets; empty where evaluation is off."""
        if not self._what.samples:
            return NOTHING
        return evaluate(self._policy, self._exams, self._what, context, self._world)

    def change(self, after: Evaluated) -> dict[str, dict[str, Any]]:
        """What has become of each outcome since the first evaluation, prompt by prompt.

        Returns:
            Outcome -> `rl4lm.evaluation.paired.Comparison` as plain values, of after against
            before; empty where the first evaluation is not known or was of other prompts.
        """
        if not after.outcomes or after.prompts != self.before.prompts:
            return {}
        found = compare_all(
            after.outcomes, self.before.outcomes, self._what.confidence, self._what.seed
        )
        return {name: comparison.to_dict() for name, comparison in found.items()}

    def state_dict(self) -> dict[str, Any]:
        """What is to be known of the first evaluation when a run is resumed: plain values."""
        return {"outcomes": self.before.outcomes, "prompts": self.before.prompts}

    def load_state_dict(self, metrics: dict[str, float], state: dict[str, Any]) -> None:
        """Take the first evaluation back.

        Args:
            metrics: of it.
            state: of `state_dict`; empty in a checkpoint of an earlier version.
        """
        self.before = replace(NOTHING, metrics=metrics, **state)
