"""From a function of one completion to a batch reward."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any, Protocol, cast

from rewards.batches import check_lengths, completion_text, listed, missing_column

# What a batch reward is handed besides the data's columns; none of it has one value per sample.
_BATCH_ONLY = ("prompts", "completions", "trainer_state", "log_extra", "log_metric")
# Names whose value per sample comes from the rollout, also where the data has such a column.
_FROM_ROLLOUT = ("prompt", "completion", "completion_ids")


@dataclass(frozen=True)
class Graded:
    """A score together with the reason for it; what a per-sample function may return.

    `score` is a finite number, or `None` where the reward does not apply. `detail` is a short text
    for the people who read the completions, such as `read 46, expected 47`. `lost` says that the
    completion made the grading hang (`timeouts`) or crash (`crashes`), which is counted.
    """

    score: float | None
    detail: str = ""
    lost: str = ""


class PerSampleReward(Protocol):
    """A batch reward made by `per_sample`; `__wrapped__` is the function of one completion."""

    __name__: str
    __signature__: inspect.Signature
    __wrapped__: Callable[..., Any]
    per_sample: bool

    def __call__(
        self,
        *,
        completions: Sequence[Any],
        prompts: Sequence[Any] | None = None,
        completion_ids: Sequence[Any] | None = None,
        log_extra: Callable[[str, list[Any]], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """Score every completion; one float or `None` each."""
        ...


def per_sample(function: Callable[..., float | Graded | None]) -> PerSampleReward:
    """Turn `(completion, **columns) -> float | None` into a batch reward.

    The function is called with keywords, once per completion:

    - `completion`: the text. Of a conversational completion (a list of messages) it is the
      `content` of the last message.
    - `prompt` (as it was given: text or messages) and `completion_ids` (list of int), where the
      function names them;
    - the data's columns that it names; all of them if it takes `**kwargs`. A parameter with a
      default value is optional: where the data has no such column, the default is used.

    It returns a finite number, `None` where it does not apply, or a `Graded` with the reason as
    well. Reasons go through `log_extra("detail", [...])`, one text per completion.

    The batch reward has the attribute `per_sample = True`: its scores do not depend on the other
    completions. It keeps the name, so that it can be pickled, and the function as `__wrapped__`.

    Raises:
        TypeError: here, if the function is `async`, lacks a parameter `completion`, or asks for
            what only a batch has. In a call, if a column that the function needs is missing, or
            if a completion or a score has the wrong type.
        ValueError: in a call, if a column's length is not the number of completions, or a score
            is not finite.
    """
    name = getattr(function, "__name__", repr(function))
    parameters = _checked_parameters(name, function)

    # Neither the annotations nor the signature are taken over: callers see what the batch form
    # takes. `inspect.signature` would otherwise follow `__wrapped__`.
    @functools.wraps(function, assigned=("__module__", "__name__", "__qualname__", "__doc__"))
    def reward(
        *,
        completions: Sequence[Any],
        prompts: Sequence[Any] | None = None,
        completion_ids: Sequence[Any] | None = None,
        log_extra: Callable[[str, list[Any]], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        rollout = {"prompt": prompts, "completion_ids": completion_ids}
        passed = _passed_columns(name, parameters, columns, rollout)
        check_lengths(name, passed, len(completions))
        graded = _graded(name, function, completions, passed)
        if log_extra is not None:
            _log(graded, log_extra)
        return [result.score for result in graded]

    batch_reward = cast(PerSampleReward, reward)
    batch_reward.__signature__ = inspect.signature(reward, follow_wrapped=False)
    batch_reward.per_sample = True
    return batch_reward


def _graded(
    name: str,
    function: Callable[..., Any],
    completions: Sequence[Any],
    columns: Mapping[str, Sequence[Any]],
) -> list[Graded]:
    """What the function says of each completion."""
    graded = []
    for row, completion in enumerate(completions):
        own = {column: values[row] for column, values in columns.items()}
        result = function(completion=completion_text(name, row, completion), **own)
        graded.append(_checked_result(name, row, result))
    return graded


def _log(graded: Sequence[Graded], log_extra: Callable[[str, list[Any]], None]) -> None:
    """Hand on what the function has said beside the scores, where it has said anything."""
    for kind in ("detail", "lost"):
        texts = [getattr(result, kind) for result in graded]
        if any(texts):
            log_extra(kind, texts)


def _checked_parameters(name: str, function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    if inspect.iscoroutinefunction(function):
        raise TypeError(
            f"per_sample: {name} is async, which only a batch reward may be; "
            "write `async def reward(completions, **columns)` without the decorator"
        )
    parameters = inspect.signature(function).parameters
    batch_only = [parameter for parameter in parameters if parameter in _BATCH_ONLY]
    if batch_only:
        raise TypeError(
            f"per_sample: {name} asks for {listed(batch_only)}, which belongs to the whole batch; "
            "take `completion` (and `prompt`), or leave the decorator out"
        )
    by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.VAR_POSITIONAL)
    unnamed = [p.name for p in parameters.values() if p.kind in by_position]
    if unnamed or "completion" not in parameters:
        raise TypeError(
            f"per_sample: {name}{inspect.signature(function)} cannot be called by keyword with "
            "`completion=...`; expected a form such as `def reward(completion, answer)`"
        )
    return parameters


def _passed_columns(
    name: str,
    parameters: Mapping[str, inspect.Parameter],
    columns: Mapping[str, Any],
    rollout: Mapping[str, Sequence[Any] | None],
) -> dict[str, Sequence[Any]]:
    """What the function is handed besides the completion: name to one value per completion."""
    withheld = (*_BATCH_ONLY, *_FROM_ROLLOUT)
    available = {column: values for column, values in columns.items() if column not in withheld}
    takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    passed = {c: values for c, values in available.items() if takes_all or c in parameters}
    for source, values in rollout.items():
        if values is not None and source in parameters:
            passed[source] = values
    for parameter in parameters.values():
        needed = parameter.kind is not inspect.Parameter.VAR_KEYWORD
        if needed and parameter.default is inspect.Parameter.empty:
            _require(name, parameter.name, passed, available)
    return passed


def _require(
    name: str, column: str, passed: Mapping[str, Any], available: Mapping[str, Any]
) -> None:
    if column != "completion" and column not in passed:
        error = missing_column(name, column, available)
        advice = "Add or rename the column in the data, or give the parameter a default value"
        raise TypeError(f"{error}. {advice}")


def _checked_result(name: str, row: int, result: object) -> Graded:
    if isinstance(result, Graded):
        return replace(result, score=_checked_score(name, row, result.score))
    return Graded(_checked_score(name, row, result))


def _checked_score(name: str, row: int, score: object) -> float | None:
    if score is None:
        return None
    if not isinstance(score, Real):
        raise TypeError(
            f"reward {name} returned {score!r:.80} for completion {row}; expected a number, "
            "None or Graded(score, detail). Rewards per token need the batch form"
        )
    if not math.isfinite(score):
        raise ValueError(
            f"reward {name} returned {score} for completion {row}; expected a finite number, "
            "or None where the reward does not apply"
        )
    return float(score)
