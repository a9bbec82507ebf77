"""Call one reward on some completions, and check what it returns.

A reward is called with keywords over all rows in order: `prompts`, `completions`, each extra column
by its name, and, where it names them or takes ``**kwargs``, `completion_ids`, `trainer_state`,
`log_extra`, `log_metric`. It returns one float or None per completion, or a list of floats with one
per token. Any reward written for TRL works unchanged.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from rl4lm.errors import RewardError, RewardFailedError
from rl4lm.reward_lookup import NamedReward
from rl4lm.types import Example

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


@dataclass(frozen=True)
class Batch:
    """B completions, and everything that a reward may ask for about them."""

    examples: Sequence[Example]  # B of them: an example again for each of its completions
    completions: Sequence[str]
    completion_ids: Sequence[Sequence[int]]
    context: RewardContext

    def keywords(self) -> dict[str, Any]:
        """By name, one value per completion in order; and where training stands."""
        keywords: dict[str, Any] = {
            name: [example.columns[name] for example in self.examples]
            for name in self.examples[0].columns
        }
        keywords["prompts"] = [example.prompt for example in self.examples]
        keywords["completions"] = [
            text if isinstance(example.prompt, str) else [{"role": "assistant", "content": text}]
            for text, example in zip(self.completions, self.examples, strict=True)
        ]
        keywords["completion_ids"] = [list(ids) for ids in self.completion_ids]
        keywords["trainer_state"] = self.context
        return keywords


@dataclass(frozen=True)
class Answer:
    """What one reward said about B completions."""

    values: Sequence[Value]  # B of them
    extra: Mapping[str, Sequence[Any]]  # log_extra: name -> B values
    metrics: Mapping[str, float]  # log_metric: name -> value


def ask(reward: NamedReward, batch: Batch, prefix: str) -> Answer:
    """Call one reward, not an async one, on some completions.

    Raises:
        RewardError: it returned something that is not a list with one reward per completion.
        RewardFailedError: it raised.
    """
    notes = Notes(len(batch.completions), prefix)
    values = checked(reward, call(reward, batch.keywords(), notes), batch)
    return Answer(values, notes.extra, notes.metrics)


class Notes:
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


def call(reward: NamedReward, offered: Mapping[str, Any], notes: Notes) -> Any:
    """Call a reward with what it accepts."""
    offered = {**offered, "log_extra": notes.log_extra, "log_metric": notes.log_metric}
    # Not the wrapped function's signature: the wrapper is what is called.
    parameters = inspect.signature(reward.function, follow_wrapped=False).parameters
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    accepted = {k: v for k, v in offered.items() if takes_all or k in parameters}
    try:
        return reward.function(**accepted)
    except (Exception, SystemExit) as error:  # sys.exit() in a reward must not end a run unseen
        raise failed(reward, error) from error


def failed(reward: NamedReward, error: BaseException) -> RewardFailedError:
    """What is raised where a reward raised."""
    return RewardFailedError(f"the reward {reward.name!r} raised {type(error).__name__}: {error}")


def checked(reward: NamedReward, result: Any, batch: Batch) -> list[Value]:
    """The result as B values: a float, nan for None, or a list with a float per token."""
    # A mapping or a set has a length and no order: its keys would pass for rewards.
    if isinstance(result, (str, bytes, Mapping, Set)) or not hasattr(result, "__len__"):
        raise RewardError(
            f"the reward {reward.name!r} must return a list with one float or None per "
            f"completion, got {type(result).__name__}: {result!r:.100}"
        )
    values = result.tolist() if hasattr(result, "tolist") else list(result)
    if len(values) != len(batch.completions):
        raise RewardError(
            f"the reward {reward.name!r} returned {len(values)} values for "
            f"{len(batch.completions)} "
            "completions; it must return one per completion, in order"
        )
    return [
        _value(reward, value, f"row {i} (prompt {example.prompt_id})", len(ids))
        for i, (value, example, ids) in enumerate(
            zip(values, batch.examples, batch.completion_ids, strict=True)
        )
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
