"""The evaluations of a run: the first is kept, to be compared with, and the latest one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rl4lm.evaluation.evaluate import Evaluated, Evaluation, Exam, evaluate, prompts_of
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
        self._latest = NOTHING  # the one that was logged last
        self._latest_step = -1  # after which it was made

    def __call__(self, context: RewardContext) -> Evaluated:
        """The policy on all data sets; empty where evaluation is off."""
        if not self._what.samples:
            return NOTHING
        return evaluate(self._policy, self._exams, self._what, context, self._world)

    def note(self, step: int, found: Evaluated) -> None:
        """Remember an evaluation that was logged, and after which step it was made."""
        self._latest, self._latest_step = found, step

    def known(self, step: int) -> Evaluated | None:
        """The evaluation after a step where it is logged already, None where it is to be made.

        After the last step no weight moves, so that what was evaluated then is the result.
        """
        if step != self._latest_step or self._latest.prompts != prompts_of(self._exams, self._what):
            return None
        return self._latest

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
        """What is to be known of the first evaluation and of the latest when a run is resumed.

        Plain values, without the completions, which are logged.
        """
        latest = self._latest
        return {
            "outcomes": self.before.outcomes,
            "prompts": self.before.prompts,
            "latest_step": self._latest_step,
            "latest": {
                "metrics": latest.metrics,
                "outcomes": latest.outcomes,
                "prompts": latest.prompts,
            },
        }

    def load_state_dict(
        self, metrics: dict[str, float], state: dict[str, Any], in_one_log: bool
    ) -> None:
        """Take the evaluations back.

        Args:
            metrics: of the first one.
            state: of `state_dict`; empty in a checkpoint of an earlier version.
            in_one_log: the latest one stands in the log that is continued, and would be made alike;
                else it is left behind.
        """
        first = {name: state[name] for name in ("outcomes", "prompts") if name in state}
        self.before = replace(NOTHING, metrics=metrics, **first)
        if in_one_log and "latest" in state:
            self.note(state["latest_step"], replace(NOTHING, **state["latest"]))
