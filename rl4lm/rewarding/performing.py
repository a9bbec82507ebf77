"""Call the function of a reward, and check what it returns.

The same code runs in the trainer's process for functions that are handed over, and in a worker for
those that are named. Imports no torch.
"""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from rl4lm.errors import RewardError
from rl4lm.processes.background import in_background
from rl4lm.rewarding.calls import Answer, Call, Notes, Value, accepted

Function = Callable[..., Any]


class Raised(Exception):
    """A reward raised an exception of its own, which is the cause."""


class Cancelled(Raised):
    """An async reward was ended because another one has raised."""


def perform(function: Function, call: Call) -> Answer:
    """Call a reward and wait for its answer.

    Raises:
        RewardError: it returned something that is not a list with one reward per completion.
        Raised: it raised.
    """
    (outcome,) = perform_together([(function, call)])
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def perform_together(
    calls: Sequence[tuple[Function, Call]], to_the_end: bool = True
) -> list[Answer | RewardError | Raised]:
    """Call rewards one after another; those that are async then run concurrently.

    Raises nothing of the rewards: their errors are returned in the place of their answers. Unless
    it goes on `to_the_end`, the first error cancels what still runs: `Cancelled` is returned there.
    """
    begun = [_begin(function, call) for function, call in calls]
    if not any(isinstance(b, _Begun) and inspect.isawaitable(b.result) for b in begun):
        return [b.outcome(b.result) if isinstance(b, _Begun) else b for b in begun]
    # A thread of its own, because a notebook's thread already runs an event loop.
    return in_background(lambda: asyncio.run(_gather(begun, to_the_end)))


def is_async(function: Function) -> bool:
    """Whether a reward is async, also behind a decorator or as an object that is called."""
    forms = (function, inspect.unwrap(function), getattr(function, "__call__", None))  # noqa: B004, its own is meant
    return any(inspect.iscoroutinefunction(form) for form in forms)


@dataclass(frozen=True)
class _Begun:
    """A call that has returned, with an awaitable where the reward is async."""

    call: Call
    notes: Notes
    result: Any

    def outcome(self, result: Any) -> Answer | RewardError:
        """What the result says, once it has been awaited where it had to be."""
        try:
            return Answer(checked(self.call, result), self.notes.extra, self.notes.metrics)
        except RewardError as refusal:
            return refusal


def _begin(function: Function, call: Call) -> _Begun | Raised:
    notes = Notes(len(call.prompt_ids), call.prefix)
    logs = {"log_extra": notes.log_extra, "log_metric": notes.log_metric}
    try:
        return _Begun(call, notes, function(**call.keywords, **accepted(function, logs)))
    # sys.exit() in a reward must not end a run unseen
    except (Exception, SystemExit) as error:  # noqa: BLE001, raised again by who has asked
        return _raised(error)


async def _gather(
    begun: Sequence[_Begun | Raised], to_the_end: bool
) -> list[Answer | RewardError | Raised]:
    tasks = [asyncio.ensure_future(_awaited(each)) for each in begun]
    for finished in asyncio.as_completed(tasks):
        if isinstance(await finished, Exception) and not to_the_end:
            break
    for task in tasks:
        task.cancel()  # which does nothing to those that have finished
    await asyncio.gather(*tasks, return_exceptions=True)
    return [Cancelled("was cancelled") if task.cancelled() else task.result() for task in tasks]


async def _awaited(begun: _Begun | Raised) -> Answer | RewardError | Raised:
    if isinstance(begun, Raised):
        return begun
    try:
        result = await begun.result if inspect.isawaitable(begun.result) else begun.result
    except (Exception, SystemExit) as error:  # noqa: BLE001, raised again by who has asked
        return _raised(error)
    return begun.outcome(result)


def _raised(error: BaseException) -> Raised:
    """What a reward raised, in words."""
    failure = Raised(f"raised {type(error).__name__}: {error}")
    failure.__cause__ = error
    return failure


def checked(call: Call, result: Any) -> list[Value]:
    """The result as B values: a float, nan for None, or a list with a float per token.

    Raises:
        RewardError: it is nothing of the kind.
    """
    # A mapping or a set has a length and no order: its keys would pass for rewards.
    if isinstance(result, (str, bytes, Mapping, Set)) or not hasattr(result, "__len__"):
        raise RewardError(
            f"the reward {call.reward!r} must return a list with one float or None per "
            f"completion, got {type(result).__name__}: {result!r:.100}"
        )
    values = result.tolist() if hasattr(result, "tolist") else list(result)
    if len(values) != len(call.prompt_ids):
        raise RewardError(
            f"the reward {call.reward!r} returned {len(values)} values for "
            f"{len(call.prompt_ids)} "
            "completions; it must return one per completion, in order"
        )
    rows = zip(values, call.numbers, call.prompt_ids, call.lengths, strict=True)
    return [
        _value(call.reward, value, f"row {i} (prompt {prompt_id})", tokens)
        for value, i, prompt_id, tokens in rows
    ]


def _value(reward: str, value: Any, where: str, tokens: int) -> Value:
    """A row's reward: a float, nan for None, or a float for each of its tokens."""
    if value is None:
        return math.nan
    values = value.tolist() if hasattr(value, "tolist") else value
    if not isinstance(values, (list, tuple)):
        return _number(reward, values, where)
    if len(values) != tokens:
        raise RewardError(
            f"the reward {reward!r} returned a list of {len(values)} for {where}, whose "
            f"completion has {tokens} tokens; give one float per token of `completion_ids`, the "
            "end token included, or one float for the completion"
        )
    return [_number(reward, each, f"token {t} of {where}") for t, each in enumerate(values)]


def _number(reward: str, value: Any, where: str) -> float:
    said = f"the reward {reward!r} returned {value!r:.100} for {where}"
    if isinstance(value, (str, bytes)) or not hasattr(value, "__float__"):
        raise RewardError(f"{said}, which is not a number; give a float, or None for 'no reward'")
    number = float(value)
    if not math.isfinite(number):
        raise RewardError(f"{said}; give a finite float, or None where the reward does not apply")
    return number
