"""Call the rewards on completions, check what they return, and add them up.

A reward is called once per process and step with keywords over all rows in order: `prompts`,
`completions`, each extra column by its name, and, where it names them or takes ``**kwargs``,
`completion_ids`, `trainer_state`, `log_extra`, `log_metric`. It returns one float or None per
completion, or a list of floats with one per token, and may be ``async``. Any reward written for
TRL works unchanged.

Rewards run in the trainer's own process, without a time limit.
"""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Awaitable, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rl4lm.errors import RewardError, RewardFailedError
from rl4lm.reward_lookup import NamedReward
from rl4lm.types import Example, Scores

Value = float | list[float]  # a row's reward, nan for None; or one number per token

# Names that a reward's own notes may not take.
COMPLETION_FIELDS = (
    "step",
    "prompt_id",
    "sample",
    "prompt",
    "completion",
    "prompt_ids",
    "completion_ids",
    "reward",
    "rewards",
    "token_rewards",
    "advantage",
    "sampling_logprob",
    "truncated",
)
METRIC_NAMES = (
    "step",
    "loss",
    "kl",
    "kl_sequence",
    "reward",
    "reward_std",
    "frac_reward_zero_std",
    "rewards_not_applicable",
    "entropy",
    "effective_samples",
    "effective_share",
    "variance_reduction",
    "gradient_noise_scale",
    "gradient_snr",
    "grad_norm",
    "grad_clipped",
    "updated",
    "learning_rate",
    "sampler_gap_mean",
    "sampler_gap_max",
    "tokens_per_second",
)


_METRIC_FAMILIES = ("rewards/", "time/", "completions/", "importance_ratio/", "clip_ratio/")


@dataclass(frozen=True)
class RewardContext:
    """A picklable snapshot of where training stands, for rewards that ask for `trainer_state`."""

    global_step: int  # optimizer steps finished
    max_steps: int
    seed: int


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

    @property
    def names(self) -> list[str]:
        """The names of the rewards, in order."""
        return [reward.name for reward in self._rewards]

    def __call__(
        self,
        examples: Sequence[Example],
        completions: Sequence[str],
        completion_ids: Sequence[Sequence[int]],
        context: RewardContext,
    ) -> Scores:
        """Score the B = P·G completions of P examples, the G of an example side by side.

        Raises:
            RewardError: a reward returned something that is not a list of B floats, Nones or
                lists with a float per token.
            RewardFailedError: a reward raised.
        """
        notes = [_Notes(len(completions), prefix) for prefix in self._prefixes()]
        offered = _keywords(examples, completions, completion_ids, context)
        group = len(completions) // len(examples)
        ids = [examples[i // group].prompt_id for i in range(len(completions))]
        values = [
            _checked(reward, result, ids, completion_ids)
            for reward, result in zip(self._rewards, self._call_all(offered, notes), strict=True)
        ]
        totals = [[_total(value) for value in row] for row in values]
        per_reward = torch.tensor(totals, dtype=torch.float64)  # [K, B], nan where None
        applies = ~per_reward.isnan()
        weighted = per_reward.nan_to_num(nan=0.0) * self._weights[:, None]
        shape = (len(examples), group)
        return Scores(
            rewards=weighted.sum(dim=0).reshape(shape),
            valid=applies.any(dim=0).reshape(shape),
            parts={n: v.reshape(shape) for n, v in zip(self.names, per_reward, strict=True)},
            token_rewards=_dealt_to_tokens(values, self._weights.tolist(), completion_ids),
            extra={name: values for note in notes for name, values in note.extra.items()},
            metrics={name: value for note in notes for name, value in note.metrics.items()},
        )

    def _prefixes(self) -> list[str]:
        """What each reward's notes are filed under; a lone reward needs no distinction."""
        return [""] if len(self._rewards) == 1 else [f"{name}/" for name in self.names]

    def _call_all(self, offered: Mapping[str, Any], notes: Sequence[_Notes]) -> list[Any]:
        """Call every reward; the async ones run concurrently, after the others."""
        results = [
            _call(r, {**offered, "log_extra": n.log_extra, "log_metric": n.log_metric})
            for r, n in zip(self._rewards, notes, strict=True)
        ]
        waiting = {i: r for i, r in enumerate(results) if inspect.isawaitable(r)}
        if waiting:
            # A thread of its own, because a notebook's thread already runs an event loop.
            with ThreadPoolExecutor(max_workers=1) as pool:
                gathered = pool.submit(asyncio.run, _gather(self._rewards, waiting)).result()
            for i, result in zip(waiting, gathered, strict=True):
                results[i] = result
        return results


class _Notes:
    """What one reward logs about the completions of one call."""

    def __init__(self, rows: int, prefix: str) -> None:
        self.extra: dict[str, list[Any]] = {}
        self.metrics: dict[str, float] = {}
        self._rows = rows
        self._prefix = prefix

    def log_extra(self, name: str, values: Sequence[Any]) -> None:
        """Keep a value per completion for the completions file."""
        if len(values) != self._rows:
            raise ValueError(
                f"log_extra({name!r}, …) got {len(values)} values for {self._rows} completions"
            )
        self.extra[self._free(name, COMPLETION_FIELDS)] = list(values)

    def log_metric(self, name: str, value: float) -> None:
        """Keep a number for the metrics of the step."""
        self.metrics[self._free(name, METRIC_NAMES)] = float(value)

    def _free(self, name: str, taken: Sequence[str]) -> str:
        full = self._prefix + name
        if full in taken or full.startswith(_METRIC_FAMILIES):
            raise ValueError(f"{full!r} is a name of the log's own; choose another one")
        return full


async def _gather(
    rewards: Sequence[NamedReward], waiting: Mapping[int, Awaitable[Any]]
) -> list[Any]:
    results = await asyncio.gather(*waiting.values(), return_exceptions=True)
    for i, result in zip(waiting, results, strict=True):
        if isinstance(result, BaseException):
            raise _failure(rewards[i], result) from result
    return list(results)


def _keywords(
    examples: Sequence[Example],
    completions: Sequence[str],
    completion_ids: Sequence[Sequence[int]],
    context: RewardContext,
) -> dict[str, Any]:
    """Everything a reward may ask for, over the B rows in order."""
    rows = [example for example in examples for _ in range(len(completions) // len(examples))]
    keywords: dict[str, Any] = {
        name: [row.columns[name] for row in rows] for name in rows[0].columns
    }
    chat = [not isinstance(row.prompt, str) for row in rows]
    keywords["prompts"] = [row.prompt for row in rows]
    keywords["completions"] = [
        [{"role": "assistant", "content": text}] if is_chat else text
        for text, is_chat in zip(completions, chat, strict=True)
    ]
    keywords["completion_ids"] = [list(ids) for ids in completion_ids]
    keywords["trainer_state"] = context
    return keywords


def _call(reward: NamedReward, offered: Mapping[str, Any]) -> Any:
    """Call a reward with what it accepts."""
    # Not the wrapped function's signature: the wrapper is what is called.
    parameters = inspect.signature(reward.function, follow_wrapped=False).parameters
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    accepted = {k: v for k, v in offered.items() if takes_all or k in parameters}
    try:
        return reward.function(**accepted)
    except (Exception, SystemExit) as error:  # sys.exit() in a reward must not end a run unseen
        raise _failure(reward, error) from error


def _failure(reward: NamedReward, error: BaseException) -> RewardFailedError:
    return RewardFailedError(f"the reward {reward.name!r} raised {type(error).__name__}: {error}")


def _checked(
    reward: NamedReward,
    result: Any,
    prompt_ids: Sequence[str],
    completion_ids: Sequence[Sequence[int]],
) -> list[Value]:
    """The result as B values: a float, nan for None, or a list with a float per token."""
    # A mapping or a set has a length and no order: its keys would pass for rewards.
    if isinstance(result, (str, bytes, Mapping, Set)) or not hasattr(result, "__len__"):
        raise RewardError(
            f"the reward {reward.name!r} must return a list with one float or None per "
            f"completion, got {type(result).__name__}: {result!r:.100}"
        )
    values = result.tolist() if hasattr(result, "tolist") else list(result)
    if len(values) != len(prompt_ids):
        raise RewardError(
            f"the reward {reward.name!r} returned {len(values)} values for {len(prompt_ids)} "
            "completions; it must return one per completion, in order"
        )
    return [
        _value(reward, value, f"row {i} (prompt {prompt_ids[i]})", len(completion_ids[i]))
        for i, value in enumerate(values)
    ]


def _value(reward: NamedReward, value: Any, where: str, tokens: int) -> Value:
    """A row's reward: a float, nan for None, or a float for each of its tokens."""
    if value is None:
        return math.nan
    values = value.tolist() if hasattr(value, "tolist") else value
    if not isinstance(values, (list, tuple)):
        return _number(reward, values, where)
    if len(values) != tokens:
        raise RewardError(
            f"the reward {reward.name!r} returned a list of {len(values)} for {where}, whose "
            f"completion has {tokens} tokens; give one float per token of `completion_ids`, the "
            "end token included, or one float for the completion"
        )
    return [_number(reward, each, f"token {t} of {where}") for t, each in enumerate(values)]


def _number(reward: NamedReward, value: Any, where: str) -> float:
    said = f"the reward {reward.name!r} returned {value!r:.100} for {where}"
    if isinstance(value, (str, bytes)) or not hasattr(value, "__float__"):
        raise RewardError(f"{said}, which is not a number; give a float, or None for 'no reward'")
    number = float(value)
    if not math.isfinite(number):
        raise RewardError(f"{said}; give a finite float, or None where the reward does not apply")
    return number


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
