"""Call the rewards on completions, check what they return, and add them up.

A reward is called once per process and step with keywords over all rows in order: `prompts`,
`completions`, each extra column by its name, and, where it names them or takes ``**kwargs``,
`completion_ids`, `trainer_state`, `log_extra`, `log_metric`. It returns one float or None per
completion and may be ``async``. Any reward written for TRL works unchanged.

Rewards run in the trainer's own process, without a time limit.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import inspect
import math
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from rl4lm.errors import RewardError, RewardFailedError, did_you_mean
from rl4lm.types import Example, Scores

Reward = Callable[..., "Sequence[float | None] | Awaitable[Sequence[float | None]]"]

_ALWAYS = ("prompts", "completions")
_ON_REQUEST = ("completion_ids", "trainer_state", "log_extra", "log_metric")
_PER_SAMPLE = ("prompt", "completion")  # what a wrapped per-sample function may name


@dataclass(frozen=True)
class RewardContext:
    """A picklable snapshot of where training stands, for rewards that ask for `trainer_state`."""

    global_step: int  # optimizer steps finished
    max_steps: int
    seed: int


@dataclass(frozen=True)
class NamedReward:
    """A reward function under the name that the logs use."""

    name: str
    function: Reward


def resolve_rewards(rewards: Sequence[str | Reward]) -> list[NamedReward]:
    """Turn names and callables into rewards with distinct names.

    Args:
        rewards: callables, or names: ``package.module:function`` (also with a dot) or
            ``path/to/file.py:function``.

    Raises:
        RewardError: a name that does not resolve, or something that cannot be called.
    """
    found = [NamedReward(_short_name(r), _resolve(r)) for r in rewards]
    taken = [reward.name for reward in found]
    return [
        r if taken.count(r.name) == 1 else NamedReward(f"{r.name}_{i}", r.function)
        for i, r in enumerate(found)
    ]


def _short_name(reward: str | Reward) -> str:
    if isinstance(reward, str):
        return reward.replace(":", ".").split(".")[-1]
    return getattr(reward, "__name__", type(reward).__name__)


def _resolve(reward: str | Reward) -> Reward:
    if isinstance(reward, str):
        reward = _import(reward)
    if not callable(reward):
        raise RewardError(
            f"a reward must be a function or its name, got {type(reward).__name__}: {reward!r:.100}"
        )
    return reward


def _import(name: str) -> Any:
    place, separator, function = name.rpartition(":")
    if not separator and name.endswith(".py"):
        raise RewardError(f"the reward {name!r} names no function: write it as {name}:function")
    if not separator:
        place, separator, function = name.rpartition(".")
    if not place or not function:
        raise RewardError(
            f"the reward {name!r} cannot be found: name it as package.module:function or "
            "path/to/file.py:function"
        )
    module = _import_file(name, place) if place.endswith(".py") else _import_module(name, place)
    if not hasattr(module, function):
        public = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise RewardError(
            f"the reward {name!r} cannot be found: {place} has no {function!r}"
            f"{did_you_mean(function, public)}"
        )
    return getattr(module, function)


def _import_file(name: str, place: str) -> ModuleType:
    path = Path(place).expanduser().resolve()
    if not path.is_file():
        raise RewardError(f"the reward {name!r} cannot be found: there is no file {str(path)!r}")
    spec = importlib.util.spec_from_file_location(f"rl4lm_reward_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # so that its dataclasses and pickles find their module
    sys.path.insert(0, str(path.parent))  # so that it can import its neighbours
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise RewardError(
            f"the reward {name!r} cannot be loaded: {type(error).__name__}: {error}"
        ) from error
    finally:
        sys.path.remove(str(path.parent))
    return module


def _import_module(name: str, place: str) -> ModuleType:
    if str(Path.cwd()) not in sys.path:  # a console script does not put it there
        sys.path.append(str(Path.cwd()))
    try:
        return importlib.import_module(place)
    except (Exception, SystemExit) as error:
        top = place.partition(".")[0]
        file = getattr(sys.modules.get(top), "__file__", None)
        seen = f"; {top} is {file}" if file else ""  # perhaps not the one that was meant
        raise RewardError(
            f"the reward {name!r} cannot be loaded: {type(error).__name__}: {error}{seen}"
        ) from error


def check_columns(rewards: Sequence[NamedReward], columns: Sequence[str]) -> None:
    """Refuse rewards that need a column which the data do not have.

    Raises:
        RewardError: names the function, the column and the columns there are.
    """
    known = {*columns, *_ALWAYS, *_ON_REQUEST, *_PER_SAMPLE}
    for reward in rewards:
        # What a decorator such as `rewards.per_sample` wraps is what names the columns.
        named = getattr(reward.function, "__wrapped__", reward.function)
        for parameter in inspect.signature(named).parameters.values():
            required = parameter.default is inspect.Parameter.empty
            fixed = parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD)
            if required and fixed and parameter.name not in known:
                raise RewardError(
                    f"the reward {reward.name!r} needs the column {parameter.name!r}, which the "
                    f"data do not have{did_you_mean(parameter.name, columns)}; "
                    f"their columns are: {', '.join(columns) or 'none besides the prompt'}"
                )


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
            RewardError: a reward returned something that is not a list of B floats or Nones.
            RewardFailedError: a reward raised.
        """
        extra: dict[str, Sequence[Any]] = {}
        metrics: dict[str, float] = {}
        offered = _keywords(examples, completions, completion_ids, context)
        offered["log_extra"] = lambda name, values: extra.__setitem__(name, list(values))
        offered["log_metric"] = lambda name, value: metrics.__setitem__(name, float(value))
        group = len(completions) // len(examples)
        ids = [examples[i // group].prompt_id for i in range(len(completions))]
        values = [
            _checked(reward, result, ids)
            for reward, result in zip(self._rewards, self._call_all(offered), strict=True)
        ]
        per_reward = torch.tensor(values, dtype=torch.float64)  # [K, B], nan where None
        applies = ~per_reward.isnan()
        weighted = per_reward.nan_to_num(nan=0.0) * self._weights[:, None]
        shape = (len(examples), group)
        return Scores(
            rewards=weighted.sum(dim=0).reshape(shape),
            valid=applies.any(dim=0).reshape(shape),
            parts={n: v.reshape(shape) for n, v in zip(self.names, per_reward, strict=True)},
            extra=extra,
            metrics=metrics,
        )

    def _call_all(self, offered: Mapping[str, Any]) -> list[Any]:
        """Call every reward; the async ones run concurrently, after the others."""
        results = [_call(reward, offered) for reward in self._rewards]
        waiting = {i: r for i, r in enumerate(results) if inspect.isawaitable(r)}
        if waiting:
            # A thread of its own, because a notebook's thread already runs an event loop.
            with ThreadPoolExecutor(max_workers=1) as pool:
                gathered = pool.submit(asyncio.run, _gather(self._rewards, waiting)).result()
            for i, result in zip(waiting, gathered, strict=True):
                results[i] = result
        return results


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


def _checked(reward: NamedReward, result: Any, prompt_ids: Sequence[str]) -> list[float]:
    """The result as B floats, nan for None."""
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
    return [_number(reward, v, i, prompt_ids[i]) for i, v in enumerate(values)]


def _number(reward: NamedReward, value: Any, row: int, prompt_id: str) -> float:
    if value is None:
        return math.nan
    where = f"the reward {reward.name!r} returned {value!r:.100} for row {row} (prompt {prompt_id})"
    if isinstance(value, (list, tuple)):
        raise RewardError(f"{where}; rewards per token are not in this version, give one float")
    if isinstance(value, (str, bytes)) or not hasattr(value, "__float__"):
        raise RewardError(f"{where}, which is not a number; give a float, or None for 'no reward'")
    number = float(value)
    if not math.isfinite(number):
        raise RewardError(f"{where}; give a finite float, or None where the reward does not apply")
    return number
