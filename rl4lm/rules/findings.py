"""What the rules of `rl4lm doctor` read, and what they say.

A rule is a pure function of a `RunLog` that gives a `Finding` or None. What it needs of the log is
stated beside it, so that a log without it leaves the rule out instead of misleading it.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import islice, pairwise
from typing import Any

Row = Mapping[str, Any]

RECENT = 20  # the last steps, which say how a run is doing now
_OF_PICKED = "dynamic_sampling/first_reward"  # the policy's, where `reward` is of picked groups
_LARGEST = 1e100  # beyond it, squares overflow and no metric means anything


class Severity(IntEnum):
    """How much a finding matters."""

    NOTE = 1  # worth knowing; a healthy run may have it
    WARNING = 2  # learning suffers
    ERROR = 3  # nothing, or nothing meant, is learned


@dataclass(frozen=True)
class Finding:
    """Something about a run that keeps it from learning, or may."""

    name: str
    severity: Severity
    seen: str  # with figures
    why: str  # it matters
    remedies: tuple[str, ...]
    extent: float = 1.0  # how bad, in a unit of its own; at twice the extent it is said again

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "name": self.name,
            "severity": self.severity.name.lower(),
            "seen": self.seen,
            "why": self.why,
            "remedies": list(self.remedies),
        }


@dataclass(frozen=True)
class Samples:
    """What the completions of one step look like."""

    step: int
    count: int
    fresh: float | None  # share of a prompt's further samples that no earlier one of them repeats;
    #                      None where prompts have one sample
    lowest: float | None  # reward; None where there is none
    highest: float | None


@dataclass(frozen=True)
class RunLog:
    """A run as its files tell it, or as much of it as has happened."""

    config: Row = field(default_factory=dict)
    layout: Mapping[str, str] = field(default_factory=dict)  # the comments above the configuration
    steps: Sequence[Row] = ()  # metrics, ascending
    samples: Sequence[Samples] = ()  # of some steps, ascending
    evaluations: Sequence[Row] = ()
    finished: bool = True  # there is a summary
    damage: Sequence[str] = ()  # what could not be read, in words

    @property
    def last_step(self) -> int:
        """The number of the last step, 0 where there is none."""
        return max((int(n) for n in column(self.steps, "step")), default=0)

    @property
    def recent(self) -> Sequence[Row]:
        """The last steps."""
        return self.steps[-RECENT:]

    def option(self, name: str) -> float | None:
        """An option that is a number; None where it is not there."""
        return number(self.config.get(name))

    def text(self, name: str) -> str | None:
        """An option that is a text; None where it is not there."""
        value = self.config.get(name)
        return value if isinstance(value, str) else None


@dataclass(frozen=True, eq=False)
class Rule:
    """One thing that is looked at."""

    find: Callable[[RunLog], Finding | None]  # its name is the finding's
    asks: str  # what is looked at, as the end of "checked: …"
    needs: Mapping[str, int] = field(default_factory=dict)  # metric -> steps that must have it
    options: tuple[str, ...] = ()  # that must be known
    samples: int = 0  # files of completions that there must be
    evaluations: int = 0  # lines of eval.jsonl that there must be
    while_running: bool = True  # it says something about a run that goes on

    @property
    def name(self) -> str:
        """The name of the rule and of its finding."""
        return self.find.__name__

    def lacks(self, log: RunLog) -> str | None:
        """Why a log says nothing about this, or None."""
        missing = [name for name in self.options if log.config.get(name) is None]
        if missing:
            return f"config.yaml does not say {', '.join(missing)}"
        for metric, steps in self.needs.items():
            values = (number(row.get(metric)) for row in log.steps)
            there = len(list(islice((v for v in values if v is not None), steps)))
            if there < steps:
                return f"{metric} is known of {there} steps, {steps} are needed"
        if len(log.samples) < self.samples:
            return f"completions/ has {len(log.samples)} files, {self.samples} are needed"
        if len(log.evaluations) < self.evaluations:
            return f"eval.jsonl has {len(log.evaluations)} lines, {self.evaluations} are needed"
        return None


def number(value: Any) -> float | None:
    """A value as a finite float; None where it is something else."""
    if not isinstance(value, (int, float)) or not -_LARGEST <= value <= _LARGEST:
        return None
    return float(value)


def column(rows: Iterable[Row], name: str) -> list[float]:
    """The values of a metric where it is a finite number, in order."""
    values = (number(row.get(name)) for row in rows)
    return [value for value in values if value is not None]


def policy_rewards(rows: Iterable[Row]) -> list[float]:
    """The mean reward of the policy in each step that has one, in order.

    With `dynamic_sampling` that is not `reward`: groups whose completions earn the same are not
    among those picked, and the mean of the others stays near one half whatever is learned.
    """
    values = (number(row.get(_OF_PICKED, row.get("reward"))) for row in rows)
    return [value for value in values if value is not None]


def mean(rows: Iterable[Row], name: str) -> float:
    """The mean of a metric over the rows that have it; 0 where none has."""
    return average(column(rows, name))


def average(values: Sequence[float]) -> float:
    """The mean; 0 of nothing."""
    return statistics.fmean(values) if values else 0.0


def percent(share: float) -> str:
    """A share as a person reads it: 100 % is said of all only, and 0 % of none only."""
    if 0 < share < 0.01:
        return "under 1 %"
    return "over 99 %" if 0.99 < share < 1 else f"{100 * share:.0f} %"


def trailing(rows: Sequence[Row], holds: Callable[[Row], bool]) -> int:
    """How many steps at the end, without a gap between them, all have a property."""
    count, later = 0, None
    for row in reversed(rows):
        step = number(row.get("step"))
        if not holds(row) or (later is not None and step is not None and later - step > 1):
            break
        count, later = count + 1, step
    return count


def trend(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean of the first third, mean of the last third, and the `noise` of their difference."""
    third = max(1, len(values) // 3)
    return average(values[:third]), average(values[-third:]), noise(values, third)


def noise(values: Sequence[float], width: int) -> float:
    """The standard error of the difference between the means of two windows of a width.

    The variance of a step is taken from its neighbours, ``σ² = E[(x_{t+1} - x_t)²] / 2``, which a
    slow rise does not swell.
    """
    differences = [b - a for a, b in pairwise(values)]
    variance = average([each * each for each in differences]) / 2
    return math.sqrt(variance * 2 / max(1, width))


def solved(log: RunLog, reward: float | None = None) -> bool:
    """Whether a reward is near the highest that was ever paid: nothing is left to learn.

    Args:
        log: what was paid is taken from its completions.
        reward: None means the mean of the last steps.
    """
    lowest = [s.lowest for s in log.samples if s.lowest is not None]
    highest = [s.highest for s in log.samples if s.highest is not None]
    if not lowest or max(highest) <= min(lowest) or not policy_rewards(log.recent):
        return False
    span = max(highest) - min(lowest)
    level = average(policy_rewards(log.recent)) if reward is None else reward
    return level >= max(highest) - 0.1 * span


def digest(step: int, rows: Iterable[Row]) -> Samples:
    """What the completions of a step look like, from the rows of the log.

    Samples count as the same where they differ in case and white space only.
    """
    texts: dict[str, list[str]] = defaultdict(list)
    rewards = []
    for row in rows:
        texts[str(row.get("prompt_id"))].append(
            " ".join(str(row.get("completion")).lower().split())
        )
        rewards.append(number(row.get("reward")))
    groups = [group for group in texts.values() if len(group) > 1]
    further = sum(len(group) - 1 for group in groups)
    paid = [reward for reward in rewards if reward is not None]
    return Samples(
        step=step,
        count=len(rewards),
        fresh=sum(len(set(group)) - 1 for group in groups) / further if further else None,
        lowest=min(paid, default=None),
        highest=max(paid, default=None),
    )
