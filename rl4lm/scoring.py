"""Call the rewards on completions and add up what they say.

A reward is called once per process and step, over all rows in order, and may be ``async``. What a
per-sample reward has said already, of completions that had finished before others, is handed in.

Rewards run in the trainer's own process, without a time limit.
"""

from __future__ import annotations

import asyncio
import inspect
import math
import time
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rl4lm.background import in_background
from rl4lm.errors import RewardError
from rl4lm.reward_calls import (
    Answer,
    Batch,
    Notes,
    RewardContext,
    Value,
    call,
    checked,
    failed,
)
from rl4lm.reward_lookup import NamedReward
from rl4lm.types import Example, Scores


class Scorer:
    """A weighted sum of rewards: ``r_i = Σ_k w_k r_{k,i}`` over those that apply to row i."""

    def __init__(self, rewards: Sequence[NamedReward], weights: Sequence[float]) -> None:
        """Pair each reward with its weight.

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
        # What a completion took each reward, when it was last called here; 0 before.
        self.seconds = [0.0] * len(self._rewards)

    @property
    def names(self) -> list[str]:
        """The names of the rewards, in order."""
        return [reward.name for reward in self._rewards]

    @property
    def rewards(self) -> Sequence[NamedReward]:
        """The rewards, in order."""
        return self._rewards

    def prefix(self, reward: int) -> str:
        """What a reward's notes are filed under; a lone reward needs no distinction."""
        return "" if len(self._rewards) == 1 else f"{self.names[reward]}/"

    def __call__(
        self,
        examples: Sequence[Example],
        completions: Sequence[str],
        completion_ids: Sequence[Sequence[int]],
        context: RewardContext,
        known: Mapping[int, Answer] | None = None,
    ) -> Scores:
        """Score the B = P·G completions of P examples, the G of an example side by side.

        Args:
            examples: P of them.
            completions: B texts.
            completion_ids: of each completion.
            context: for rewards that ask where training stands.
            known: by place, rewards that are not called because their answer is there already.

        Raises:
            RewardError: a reward returned something that is not a list of B floats, Nones or
                lists with a float per token.
            RewardFailedError: a reward raised.
        """
        shape = (len(examples), len(completions) // len(examples))
        rows = [example for example in examples for _ in range(shape[1])]
        answers = self._answers(Batch(rows, completions, completion_ids, context), known or {})
        values = [answer.values for answer in answers]
        totals = [[_total(value) for value in row] for row in values]
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
        )

    def _answers(self, batch: Batch, known: Mapping[int, Answer]) -> list[Answer]:
        """What each reward says; all are called before the first answer is checked."""
        asked = {k: r for k, r in enumerate(self._rewards) if k not in known}
        notes = {k: Notes(len(batch.completions), self.prefix(k)) for k in asked}
        results = self._call_all(asked, batch, notes)
        values = {k: checked(reward, results[k], batch) for k, reward in asked.items()}
        new = {k: Answer(values[k], notes[k].extra, notes[k].metrics) for k in asked}
        return [known[k] if k in known else new[k] for k in range(len(self._rewards))]

    def _call_all(
        self, asked: Mapping[int, NamedReward], batch: Batch, notes: Mapping[int, Notes]
    ) -> dict[int, Any]:
        """Call rewards one after another; the async ones run concurrently, after the others."""
        offered, results = batch.keywords(), {}
        for k, reward in asked.items():
            began = time.perf_counter()
            results[k] = call(reward, offered, notes[k])
            self.seconds[k] = (time.perf_counter() - began) / len(batch.completions)
        waiting = {k: result for k, result in results.items() if inspect.isawaitable(result)}
        if waiting:
            # A thread of its own, because a notebook's thread already runs an event loop.
            gathered = in_background(lambda: asyncio.run(_gather(asked, waiting)))
            results.update(zip(waiting, gathered, strict=True))
        return results


async def _gather(
    rewards: Mapping[int, NamedReward], waiting: Mapping[int, Awaitable[Any]]
) -> list[Any]:
    results = await asyncio.gather(*waiting.values(), return_exceptions=True)
    for i, result in zip(waiting, results, strict=True):
        if isinstance(result, BaseException):
            raise failed(rewards[i], result) from result
    return list(results)


def _total(value: Value) -> float:
    return math.fsum(value) if isinstance(value, list) else value


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
