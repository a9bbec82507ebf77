"""All rules on a log: what is wrong with a run that has ended, and with one that goes on."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from rl4lm.rules import course, log, reward, sampling, update
from rl4lm.rules.findings import RECENT, Finding, Row, Rule, RunLog, Samples, Severity, digest

RULES: Sequence[Rule] = (
    *sampling.RULES,
    *reward.RULES,
    *update.RULES,
    *course.RULES,
    *log.RULES,
)

# Finding -> others that come of it, and would only repeat it.
_EXPLAINS: Mapping[str, frozenset[str]] = {
    "constant_reward": frozenset({"equal_rewards_within_prompts", "skipped_updates"}),
    "rewards_do_not_apply": frozenset(
        {"equal_rewards_within_prompts", "skipped_updates", "reward_function_silent"}
    ),
    "equal_rewards_within_prompts": frozenset({"skipped_updates"}),
    "nothing_left_to_learn": frozenset({"skipped_updates"}),
    "duplicate_samples": frozenset({"equal_rewards_within_prompts", "skipped_updates"}),
    "no_gradient": frozenset({"reward_not_rising"}),
    "gradient_not_finite": frozenset({"skipped_updates"}),
    "learning_rate_is_zero": frozenset({"reward_not_rising"}),
    "updates_below_resolution": frozenset({"reward_not_rising"}),
    "warm_up_too_long": frozenset({"learning_rate_is_zero", "reward_not_rising"}),
}
_WATCHED = 60  # steps that a watch looks back on
_SAID_AGAIN = 2.0  # how much worse a finding must be to be said again


@dataclass(frozen=True)
class Diagnosis:
    """What was found, what was looked at, and what could not be."""

    findings: Sequence[Finding]  # the worst first
    checked: Sequence[str]  # in words
    unchecked: Mapping[str, str]  # in words -> why not


def examine(log: RunLog, rules: Iterable[Rule] = RULES) -> Diagnosis:
    """Apply every rule to which the log has something to say."""
    reasons = {rule: rule.lacks(log) for rule in rules}
    applied = [rule for rule, reason in reasons.items() if reason is None]
    found = [finding for finding in (rule.find(log) for rule in applied) if finding is not None]
    explained = frozenset().union(*(_EXPLAINS.get(each.name, frozenset()) for each in found))
    told = [finding for finding in found if finding.name not in explained]
    return Diagnosis(
        sorted(told, key=lambda finding: -finding.severity),
        [rule.asks for rule in applied],
        {rule.asks: reason for rule, reason in reasons.items() if reason is not None},
    )


class Watch:
    """The same rules on a run that goes on: each finding is said once, and again when it is worse.

    Notes are left to the end of the run. The beginning is kept and the last steps, so that a watch
    costs as much after a million steps as after a hundred.
    """

    def __init__(self, config: Mapping[str, Any], layout: Mapping[str, Any]) -> None:
        """Begin with nothing seen.

        Args:
            config: options by name, as in config.yaml.
            layout: as in the comments above them; ``device`` is what is read.
        """
        self._config = dict(config)
        self._layout = {name: str(value) for name, value in layout.items()}
        self._rules = [rule for rule in RULES if rule.while_running]
        self._first: list[Row] = []
        self._last: deque[Row] = deque(maxlen=_WATCHED)
        self._first_samples: list[Samples] = []
        self._last_samples: deque[Samples] = deque(maxlen=RECENT)
        self._said: dict[str, Finding] = {}

    def observe(self, metrics: Row, completions: Iterable[Row]) -> list[Finding]:
        """Take in a finished step.

        Args:
            metrics: as in metrics.jsonl.
            completions: as in completions/; none where a step has none of its own.

        Returns:
            Warnings and errors that were not said before, or are worse now, the worst first.
        """
        _keep(self._first, self._last, metrics)
        step = metrics.get("step")
        samples = digest(step if isinstance(step, int) else 0, completions)
        if samples.count:
            _keep(self._first_samples, self._last_samples, samples)
        log = RunLog(
            self._config,
            self._layout,
            tuple(chain(self._first, self._last)),
            tuple(chain(self._first_samples, self._last_samples)),
        )
        found = [f for f in examine(log, self._rules).findings if f.severity > Severity.NOTE]
        news = [finding for finding in found if self._is_news(finding)]
        self._said |= {finding.name: finding for finding in news}
        return news

    def _is_news(self, finding: Finding) -> bool:
        before = self._said.get(finding.name)
        if before is None or finding.severity > before.severity:
            return True
        return finding.extent >= _SAID_AGAIN * before.extent


def _keep(first: list[Any], last: deque[Any], thing: Any) -> None:
    """Keep the first things for good and the last ones for a while."""
    if len(first) < RECENT:
        first.append(thing)
    else:
        last.append(thing)
