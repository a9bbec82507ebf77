"""What a reward is asked about some completions, and what it answers.

A reward is called with keywords over all rows in order: `prompts`, `completions`, each extra column
by its name, and, where it names them or takes ``**kwargs``, `completion_ids`, `trainer_state`,
`log_extra`, `log_metric`. It returns one float or None per completion, or a list of floats with one
per token. Any reward written for TRL works unchanged; one that reads messages only is handed texts
as messages.

Imports no torch: the worker process of a reward reads this module too.
"""

from __future__ import annotations

import inspect
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from rl4lm.rewarding.lookup import NamedReward

if TYPE_CHECKING:
    from rl4lm.types import Completion, Example  # which imports torch

# How `completions` is annotated by a reward that reads messages only, as most of TRL's are.
_MESSAGES = re.compile(r"(list|sequence)\[(list|sequence)\[(dict|mapping)(\[[^\[\]]*\])?\]\]")

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
    "sampling_logprobs",
    "truncated",
    "columns",
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


_METRIC_FAMILIES = (
    *("rewards/", "time/", "completions/", "importance_ratio/", "clip_ratio/"),
    *("dynamic_sampling/", "curriculum/"),
)


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
    completions: Sequence[Completion]
    completion_ids: Sequence[Sequence[int]]
    context: RewardContext
    numbers: Sequence[int]  # of the rows, as messages name them

    def only(self, rows: Sequence[int]) -> Batch:
        """The batch of some of the rows."""
        return replace(
            self,
            examples=[self.examples[row] for row in rows],
            completions=[self.completions[row] for row in rows],
            completion_ids=[self.completion_ids[row] for row in rows],
            numbers=[self.numbers[row] for row in rows],
        )

    def where(self, row: int) -> str:
        """A row in words."""
        return f"row {self.numbers[row]} (prompt {self.examples[row].prompt_id})"

    def keywords(self, as_messages: bool = False) -> dict[str, Any]:
        """By name, one value per completion in order; and where training stands.

        Args:
            as_messages: hand a text over as a message of the assistant though its prompt is text.
        """
        keywords: dict[str, Any] = {
            name: [example.columns[name] for example in self.examples]
            for name in self.examples[0].columns
        }
        keywords["prompts"] = [example.prompt for example in self.examples]
        keywords["completions"] = [
            [{"role": "assistant", "content": completion}]
            if isinstance(completion, str) and (as_messages or not isinstance(example.prompt, str))
            else completion
            for completion, example in zip(self.completions, self.examples, strict=True)
        ]
        keywords["completion_ids"] = [list(ids) for ids in self.completion_ids]
        keywords["trainer_state"] = self.context
        return keywords


@dataclass(frozen=True)
class Call:
    """All that one call of a reward needs; can be pickled, and read without torch."""

    reward: str  # its name, for messages
    keywords: Mapping[str, Any]  # what the function accepts
    numbers: Sequence[int]  # of the B rows, for messages
    prompt_ids: Sequence[str]  # B of them, for messages
    lengths: Sequence[int]  # tokens of each completion
    prefix: str  # of the notes' names
    draws_by: tuple[int, int] | None = None  # seed and step of the run; None = draw as it comes


@dataclass(frozen=True)
class Answer:
    """What one reward said about B completions."""

    values: Sequence[Value]  # B of them; nan also where `lost` or `masked` has the row
    extra: Mapping[str, Sequence[Any]]  # log_extra: name -> B values
    metrics: Mapping[str, float]  # log_metric: name -> value
    # Rows at which the reward hung or crashed, again when it was asked about them alone -> how.
    lost: Mapping[int, str] = field(default_factory=dict)
    masked: Mapping[int, str] = field(default_factory=dict)  # rows at which it raised -> what
    counts: Mapping[str, int] = field(default_factory=dict)  # what was counted on the way


def accepted(function: Callable[..., Any], offered: Mapping[str, Any]) -> dict[str, Any]:
    """What a function names of that which is offered, or all of it if it takes ``**kwargs``."""
    # Not the wrapped function's signature: the wrapper is what is called.
    parameters = inspect.signature(function, follow_wrapped=False).parameters
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return {k: v for k, v in offered.items() if takes_all or k in parameters}


def reads_messages(function: Callable[..., Any]) -> bool:
    """Whether a reward says, by the annotation of `completions`, that it reads chat messages only.

    ``list[list[dict]]``, with or without what the dictionaries hold, also as text or with Sequence
    and Mapping; no union of that with texts.
    """
    parameter = inspect.signature(function, follow_wrapped=False).parameters.get("completions")
    annotation = None if parameter is None else parameter.annotation
    said = annotation if isinstance(annotation, str) else repr(annotation)
    return _MESSAGES.fullmatch(re.sub(r"[\w.]+\.", "", said).lower()) is not None


def call_about(reward: NamedReward, batch: Batch, prefix: str) -> Call:
    """The call that asks a reward about a batch; its notes' names get a prefix."""
    return Call(
        reward=reward.name,
        keywords=accepted(
            reward.function, batch.keywords(as_messages=reads_messages(reward.function))
        ),
        numbers=batch.numbers,
        prompt_ids=[example.prompt_id for example in batch.examples],
        lengths=[len(ids) for ids in batch.completion_ids],
        prefix=prefix,
        draws_by=(batch.context.seed, batch.context.global_step),
    )


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


def merged(parts: Sequence[tuple[Sequence[int], Answer]], count: int) -> Answer:
    """One answer about `count` rows from answers about some of them each.

    Args:
        parts: rows, and an answer about these; a row of which no part speaks has nan.
        count: of rows.
    """
    values: list[Value] = [math.nan] * count
    extra: dict[str, list[Any]] = {}
    metrics: dict[str, float] = {}
    lost: dict[int, str] = {}
    masked: dict[int, str] = {}
    counts: Counter[str] = Counter()
    for rows, answer in parts:
        metrics.update(answer.metrics)
        counts.update(answer.counts)
        lost.update((rows[i], how) for i, how in answer.lost.items())
        masked.update((rows[i], what) for i, what in answer.masked.items())
        for row, value in zip(rows, answer.values, strict=True):
            values[row] = value
        for name, noted in answer.extra.items():
            # Empty where a call had nothing to say, as it is for a row among rows with a note.
            column = extra.setdefault(name, [""] * count)
            for row, note in zip(rows, noted, strict=True):
                column[row] = note
    return Answer(values, extra, metrics, lost, masked, counts)
