"""Call the rewards on completions and add up what they say.

A reward is called once per process and step, over all rows in order, and may be ``async``. What a
per-sample reward has said already, of completions that had finished before others, is handed in.

A reward that was named runs in a process of its own, with a time limit; a function that was handed
over runs in this one, without.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from rl4lm.errors import RewardError
from rl4lm.processes.activity import asking
from rl4lm.processes.background import all_in_background
from rl4lm.rewarding.calls import Answer, Batch, RewardContext, Value, call_about
from rl4lm.rewarding.lookup import NamedReward
from rl4lm.rewarding.performing import Cancelled, is_async, perform, perform_together
from rl4lm.rewarding.process import RewardProcess
from rl4lm.rewarding.retries import Asking, Failure, Told
from rl4lm.rewarding.unanswered import Unanswered, total
from rl4lm.types import Completion, Example, Scores


class Scorer:
    """A weighted sum of rewards: ``r_i = Σ_k w_k r_{k,i}`` over those that apply to row i."""

    def __init__(
        self,
        rewards: Sequence[NamedReward],
        weights: Sequence[float],
        timeout_s: float | None = 60.0,
        on_error: Literal["raise", "mask"] = "raise",
        told: Told = lambda done, rows: None,
        seeded: bool = True,
    ) -> None:
        """Pair each reward with its weight; no process is started yet.

        Args:
            rewards: functions, and the names they were found by.
            weights: one for each.
            timeout_s: seconds for one call of a named reward; None for no limit.
            on_error: what to do where a reward raises: stop, or leave the row without this reward.
            told: of each row that is asked about alone, after a call about all has failed.
            seeded: whether what a named reward draws at random follows from the seed of the run.

        Raises:
            RewardError: not one weight per reward, or no reward at all.
        """
        if not rewards or len(rewards) != len(weights):
            raise RewardError(
                f"one weight per reward is needed, got {len(rewards)} rewards and "
                f"{len(weights)} weights"
            )
        self._rewards = list(rewards)
        self._weights = torch.tensor(weights, dtype=torch.float64)
        self._timeout_s = timeout_s
        self._on_error = on_error
        self._processes: dict[int, RewardProcess] = {}
        mask = on_error == "mask"
        self._askings = [
            Asking(reward, partial(perform, reward.function), self.prefix(k), mask, told)
            for k, reward in enumerate(rewards)
        ]
        self._give_processes(seeded)
        self._beside: dict[NamedReward, Scorer] = {}
        # What a completion took each reward, when it was last called here; 0 before.
        self.seconds = [0.0] * len(self._rewards)
        self._unanswered = [
            Unanswered(asking, weight)
            for asking, weight in zip(self._askings, weights, strict=True)
        ]

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def names(self) -> list[str]:
        """The names of the rewards, in order."""
        return [reward.name for reward in self._rewards]

    @property
    def worst(self) -> list[float]:
        """What a row scores where it keeps a reward from answering; it depends on past batches."""
        return [unanswered.worst for unanswered in self._unanswered]

    @worst.setter
    def worst(self, values: Sequence[float]) -> None:
        for unanswered, value in zip(self._unanswered, values, strict=True):
            unanswered.worst = value

    @property
    def rewards(self) -> Sequence[NamedReward]:
        """The rewards, in order."""
        return self._rewards

    def prefix(self, reward: int) -> str:
        """What a reward's notes are filed under; a lone reward needs no distinction."""
        return "" if len(self._rewards) == 1 else f"{self.names[reward]}/"

    def start(self) -> None:
        """Start the processes of the named rewards without waiting for them."""
        for process in self._processes.values():
            process.start()

    def close(self) -> None:
        """End the processes of the named rewards; a later call would start them again."""
        for process in self._processes.values():
            process.close()
        for other in self._beside.values():
            other.close()

    def describe(self) -> str:
        """Where the rewards run, and for how long they may, in a sentence for the reader."""
        limit = f"{self._timeout_s:g} s a call" if self._timeout_s else "without a time limit"
        return "; ".join(
            f"{name} in its own process, {limit}"
            if k in self._processes
            else f"{name} in this process, without a time limit"
            for k, name in enumerate(self.names)
        )

    def beside(self, reward: NamedReward) -> Scorer:
        """A scorer of one other reward, kept and closed with this one.

        It shares the process of a reward that was found by the same name.
        """
        if reward not in self._beside:
            other = Scorer([reward], [1.0], self._timeout_s, self._on_error)
            for k, process in self._processes.items():
                if self._rewards[k].asked_as == reward.asked_as:
                    other._ask_through(0, process)
            self._beside[reward] = other
        return self._beside[reward]

    def _give_processes(self, seeded: bool) -> None:
        """A process of its own to each named reward."""
        for k, reward in enumerate(self._rewards):
            if reward.asked_as is not None:
                bounded = float(getattr(reward.function, "seconds_per_sample", 0.0))
                process = RewardProcess(reward.asked_as, self._timeout_s, bounded, seeded)
                self._ask_through(k, process)

    def _ask_through(self, reward: int, process: RewardProcess) -> None:
        self._processes[reward] = process
        self._askings[reward] = replace(self._askings[reward], ask=process.ask)

    def __call__(
        self,
        examples: Sequence[Example],
        completions: Sequence[Completion],
        completion_ids: Sequence[Sequence[int]],
        context: RewardContext,
        known: Mapping[int, Answer] | None = None,
    ) -> Scores:
        """Score the B = P·G completions of P examples, the G of an example side by side.

        Args:
            examples: P of them.
            completions: B texts, or messages of the assistant.
            completion_ids: of each completion.
            context: for rewards that ask where training stands.
            known: by place, rewards that are not called because their answer is there already.

        Raises:
            RewardError: a reward returned something that is not a list of B floats, Nones or
                lists with a float per token.
            RewardFailedError: a reward raised, or it cannot be asked.
        """
        shape = (len(examples), len(completions) // len(examples))
        rows = [example for example in examples for _ in range(shape[1])]
        batch = Batch(rows, completions, completion_ids, context, range(len(completions)))
        answers = self._answers(batch, known or {})
        values = [answer.values for answer in answers]
        totals = [[total(value) for value in row] for row in values]
        per_reward = torch.tensor(totals, dtype=torch.float64)  # [K, B], nan where None
        applies = ~per_reward.isnan()
        weighted = per_reward.nan_to_num(nan=0.0) * self._weights[:, None]
        return Scores(
            rewards=weighted.sum(dim=0).reshape(shape),
            valid=applies.any(dim=0).reshape(shape),
            parts={n: v.reshape(shape) for n, v in zip(self.names, per_reward, strict=True)},
            token_rewards=_dealt_to_tokens(values, self._weights.tolist(), completion_ids),
            extra={name: values for answer in answers for name, values in answer.extra.items()},
            metrics={name: value for answer in answers for name, value in answer.metrics.items()},
            lost={row for answer in answers for row in answer.lost},
        )

    def ask(self, reward: int, batch: Batch) -> Answer:
        """What one reward, not an async one, says about some completions.

        Raises:
            RewardError, RewardFailedError: as for all completions.
        """
        with asking(self.names[reward]):
            return self._askings[reward](batch)

    def _answers(self, batch: Batch, known: Mapping[int, Answer]) -> list[Answer]:
        """What each reward says about all rows, with scores where it could not be asked."""
        asked = [k for k in range(len(self._rewards)) if k not in known]
        try:
            answers = {**known, **self._ask_all(asked, batch)}
        except (KeyboardInterrupt, SystemExit):
            self.close()  # some are in the middle of their work
            raise
        return [each.settle(answers[k]) for k, each in enumerate(self._unanswered)]

    def _ask_all(self, asked: Sequence[int], batch: Batch) -> dict[int, Answer]:
        """Ask rewards one after another; the async ones concurrently, after the others."""
        answers: dict[int, Answer] = {}
        together = [k for k in asked if is_async(self._rewards[k].function)]
        for k in asked:
            if k not in together:
                began = time.perf_counter()
                answers[k] = self.ask(k, batch)
                self.seconds[k] = (time.perf_counter() - began) / len(batch.completions)
        # What was cancelled comes last: the error that did it is the one to raise.
        found = self._ask_together(together, batch).items()
        for k, first in sorted(found, key=lambda each: isinstance(each[1], Cancelled)):
            answers[k] = self._askings[k].settle(batch, first)
        return answers

    def _ask_together(self, asked: Sequence[int], batch: Batch) -> dict[int, Answer | Failure]:
        """One call of each async reward, all at the same time."""
        if not asked:
            return {}
        here = [k for k in asked if k not in self._processes]
        there = [k for k in asked if k in self._processes]
        calls = {k: call_about(self._rewards[k], batch, self.prefix(k)) for k in here}
        works: list[Callable[[], Any]] = [
            lambda: perform_together(
                [(self._rewards[k].function, calls[k]) for k in here],
                to_the_end=self._on_error == "mask",
            ),
            *(lambda k=k: self._askings[k].once(batch) for k in there),
        ]
        with asking(", ".join(self.names[k] for k in asked)):
            (first, *others) = all_in_background(works)
        found = dict(zip([*here, *there], [*first, *others], strict=True))
        for outcome in found.values():
            if isinstance(outcome, RewardError):
                raise outcome
        return found


def _dealt_to_tokens(
    values: Sequence[Sequence[Value]],
    weights: Sequence[float],
    completion_ids: Sequence[Sequence[int]],
) -> Tensor | None:
    """The weighted sum per token, float64 [B, T]; None where no reward is given per token.

    One reward for a whole completion is earned at its last token.
    """
    if not any(isinstance(value, list) for row in values for value in row):
        return None
    table = torch.zeros(
        len(completion_ids), max(len(ids) for ids in completion_ids), dtype=torch.float64
    )
    for weight, row in zip(weights, values, strict=True):
        for i, value in enumerate(row):
            if isinstance(value, list):
                table[i, : len(value)] += weight * torch.tensor(value, dtype=torch.float64)
            elif not math.isnan(value):
                table[i, len(completion_ids[i]) - 1] += weight * value
    return table
