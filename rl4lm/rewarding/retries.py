"""Ask a reward about a batch, and find the completions at which it gives no answer.

After a hang, a crash, or an exception that is to be masked, the rows are asked about one by one.
What does not come again is counted and no more. A row that hangs or crashes again, alone, is
*lost*: it scores the reward's worst value in the end, because any other score, and no score too,
would make it pay to stop the grader. A row that raises again, alone, is *masked*: the reward does
not apply.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from rl4lm.errors import RewardFailedError
from rl4lm.rewarding.calls import Answer, Batch, Call, call_about, merged
from rl4lm.rewarding.launch import WorkerLost
from rl4lm.rewarding.lookup import NamedReward
from rl4lm.rewarding.performing import Raised

Told = Callable[[int, int], None]  # how many rows were asked about alone, of how many

# Nothing but rows without an answer for so long means that something else is broken.
_NO_ANSWER_S = 600.0
_STRIDE = 0.6180339887498949  # the golden ratio: steps of it never come near one another

Failure = Raised | WorkerLost


@dataclass
class _Alone:
    """What came of asking about rows one by one, by row."""

    answers: dict[int, Answer] = field(default_factory=dict)
    lost: dict[int, WorkerLost] = field(default_factory=dict)
    raised: dict[int, Raised] = field(default_factory=dict)


@dataclass(frozen=True)
class Asking:
    """One reward, and how it is asked."""

    reward: NamedReward
    ask: Callable[[Call], Answer]
    prefix: str  # of its notes' names
    mask: bool  # rows at which it raises are left without this reward, instead of stopping the run
    told: Told  # of every row that is asked about alone

    def __call__(self, batch: Batch) -> Answer:
        """The answer about a batch, with what could not be answered.

        Raises:
            RewardError: it returned something that is not a list with one reward per completion.
            RewardFailedError: it raised, or it cannot be asked.
        """
        return self.settle(batch, self.once(batch))

    def once(self, batch: Batch) -> Answer | Failure:
        """One call; a failure is returned."""
        try:
            return self.ask(call_about(self.reward, batch, self.prefix))
        except (Raised, WorkerLost) as failure:
            return failure

    def settle(self, batch: Batch, first: Answer | Failure) -> Answer:
        """The answer about a batch, after one call about all of it has given `first`."""
        if isinstance(first, Answer):
            return first
        if isinstance(first, Raised) and not self.mask:
            raise self._where_it_raises(batch, first)
        alone = self._one_by_one(batch, first)
        masked = {row: str(what) for row, what in alone.raised.items() if self._masks(first)}
        heard = sorted({*alone.answers, *alone.raised} - {*masked})
        rows = len(batch.completions)
        return replace(
            merged(self._parts(batch, alone, heard), rows),
            lost={row: str(how) for row, how in alone.lost.items()},
            masked=masked,
            counts={**_counts(first, alone.lost), "retried": rows, "masked": len(masked)},
        )

    @property
    def _per_sample(self) -> bool:
        return getattr(self.reward.function, "per_sample", False) is True

    def _masks(self, first: Failure) -> bool:
        """Whether a row alone at which the reward raises is masked.

        Not where a reward for whole batches has hung or crashed: it may need more than one row.
        """
        return self.mask and (self._per_sample or isinstance(first, Raised))

    def _one_by_one(self, batch: Batch, first: Failure) -> _Alone:
        alone, began = _Alone(), time.monotonic()
        rows = _scattered(len(batch.completions))
        for done, row in enumerate(rows, start=1):
            outcome = self.once(batch.only([row]))
            self.told(done, len(rows))
            if isinstance(outcome, Answer):
                alone.answers[row] = outcome
            elif isinstance(outcome, WorkerLost):
                alone.lost[row] = outcome
            elif self._per_sample and not self.mask:
                raise self._failed(outcome, _at(batch, row))
            else:
                alone.raised[row] = outcome
            silent = len(alone.lost) > 1 and not alone.answers and not alone.raised
            if silent and time.monotonic() - began > _NO_ANSWER_S:
                raise no_answer(self.reward, len(alone.lost), str(outcome))
        return alone

    def _parts(
        self, batch: Batch, alone: _Alone, heard: Sequence[int]
    ) -> list[tuple[Sequence[int], Answer]]:
        """Answers about the rows that the reward can say something about."""
        # One that logs a number for the step looks at more than one completion after all.
        independent = self._per_sample and not any(a.metrics for a in alone.answers.values())
        if independent or not heard:
            return [([row], alone.answers[row]) for row in heard]
        together = self.once(batch.only(heard))
        if isinstance(together, Answer):
            return [(heard, together)]
        raise self._failed(
            together,
            f" in a call about {len(heard)} rows; it does not hang or crash at any of them alone. "
            "If it only needs longer, raise reward_timeout_s",
        )

    def _where_it_raises(self, batch: Batch, first: Raised) -> RewardFailedError:
        """The error that stops the run; it names the row if rows are asked about one by one."""
        rows = len(batch.completions)
        if rows == 1:
            return self._failed(first, _at(batch, 0))
        for row in range(rows if self._per_sample else 0):
            outcome = self.once(batch.only([row]))
            if isinstance(outcome, Raised):
                return self._failed(first, _at(batch, row))
            if isinstance(outcome, WorkerLost):
                break
        return self._failed(first, f" in a call about {rows} rows")

    def _failed(self, failure: Failure, place: str) -> RewardFailedError:
        error = RewardFailedError(f"the reward {self.reward.name!r} {failure}{place}")
        error.__cause__ = failure.__cause__ or failure
        return error


def no_answer(reward: NamedReward, rows: int, how: str) -> RewardFailedError:
    """What is raised where a reward answers about no row at all.

    That is no row's fault, and to score it would be to learn from a broken grader.
    """
    return RewardFailedError(
        f"the reward {reward.name!r} answers about none of {rows} rows, each of which it was asked "
        f"about alone: it {how}. What it depends on may be gone; if it only needs longer, raise "
        "reward_timeout_s"
    )


def _at(batch: Batch, row: int) -> str:
    return f" for {batch.where(row)}, completion {batch.completions[row]!r:.100}"


def _counts(first: Failure, lost: Mapping[int, WorkerLost]) -> Counter[str]:
    """How often it hung or crashed: at which rows, or once for no row in particular."""
    if not lost and isinstance(first, WorkerLost):
        return Counter({first.kind: 1})
    return Counter(how.kind for how in lost.values())


def _scattered(count: int) -> list[int]:
    """0 … count - 1, such that the first few come from all over, and not from one prompt."""
    return sorted(range(count), key=lambda row: (row * _STRIDE) % 1.0)
