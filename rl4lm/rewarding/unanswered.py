"""What a row scores at which a reward gave no answer, and how such rows are shown and counted.

A completion that makes the grader hang or crash, again when it is alone, scores the worst that this
reward has given so far, and never more than 0 (with a negative weight: the most, and never less).
So it is never worth a policy's while. Masked or left out, it would have advantage 0, which beats
being wrong.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rl4lm.errors import RewardError
from rl4lm.rewarding.calls import Answer, Value
from rl4lm.rewarding.lookup import NamedReward
from rl4lm.rewarding.retries import Asking, no_answer

_LOST = "lost"  # under which a reward that bounds its own work notes what came to nothing
COUNTED = ("timeouts", "crashes", "retried", "masked")


def is_count(name: str) -> bool:
    """Whether a number of the log is a count of rows at which a reward gave no answer."""
    return name.startswith("rewards/") and name.rpartition("/")[2] in COUNTED


def total(value: Value) -> float:
    """What a row is paid in all."""
    return math.fsum(value) if isinstance(value, list) else value


class Unanswered:
    """Settles the rows at which one reward gave no answer."""

    def __init__(self, asking: Asking, weight: float) -> None:
        """Begin with the reward's attribute `minimum`, or 0 where it has none.

        With a negative weight it is `maximum`.

        Raises:
            RewardError: the attribute is no number.
        """
        self._asking = asking
        self._sign = -1.0 if weight < 0 else 1.0
        self.worst = _declared(asking.reward, "maximum" if weight < 0 else "minimum")

    def settle(self, answer: Answer) -> Answer:
        """The answer about a whole batch with a score, a note and a count for such rows.

        Raises:
            RewardFailedError: there is no other row, of several.
        """
        rows = len(answer.values)
        if rows > 1 and len(answer.lost) == rows:
            raise no_answer(self._asking.reward, rows, answer.lost[0])
        self._remember(answer)
        notes = {row: f"{how}; scored {self.worst:g}" for row, how in answer.lost.items()}
        return replace(
            answer,
            values=[self.worst if i in notes else v for i, v in enumerate(answer.values)],
            extra=self._noted(answer, {**answer.masked, **notes}),
            metrics={**answer.metrics, **self._counted(answer)},
        )

    def _remember(self, answer: Answer) -> None:
        given = [total(value) for value in answer.values]  # nan where it does not apply, or lost
        signed = [self._sign * number for number in given if not math.isnan(number)]
        self.worst = self._sign * min([self._sign * self.worst, *signed])

    def _noted(self, answer: Answer, notes: Mapping[int, str]) -> Mapping[str, Any]:
        if not notes:
            return answer.extra
        name = f"{self._asking.prefix}detail"
        said = answer.extra.get(name, [""] * len(answer.values))
        return {**answer.extra, name: [notes.get(i, text) for i, text in enumerate(said)]}

    def _counted(self, answer: Answer) -> dict[str, float]:
        """Always there where they can ever be more than 0, so that the log has equal lines."""
        reward = self._asking.reward
        named = reward.asked_as is not None
        bounds = getattr(reward.function, "counts_lost", False) is True
        counts = Counter(answer.counts)
        if bounds:
            counts.update(answer.extra.get(f"{self._asking.prefix}{_LOST}", ()))
        names = (COUNTED[:2] if named or bounds else ()) + (
            COUNTED[2:] if named or self._asking.mask else ()
        )
        return {f"rewards/{reward.name}/{n}": float(counts[n]) for n in names}


def _declared(reward: NamedReward, attribute: str) -> float:
    value = getattr(reward.function, attribute, 0.0)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise RewardError(
            f"the attribute {attribute!r} of the reward {reward.name!r} must be a finite number, "
            f"got {value!r:.100}"
        )
    return float(value)
