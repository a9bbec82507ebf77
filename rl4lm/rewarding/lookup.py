"""Find rewards by name, and check that the data have the columns they need.

Imports no torch, so that a misspelt name is answered at once.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from rl4lm.errors import DataError, RewardError, did_you_mean
from rl4lm.rewarding.models import named_model, names_model

Reward = Callable[..., "Sequence[float | None] | Awaitable[Sequence[float | None]]"]

_ALWAYS = ("prompts", "completions")
_ON_REQUEST = ("completion_ids", "trainer_state", "log_extra", "log_metric")
_PER_SAMPLE = ("prompt", "completion")  # what a wrapped per-sample function may name


@dataclass(frozen=True)
class NamedReward:
    """A reward function under the name that the logs use."""

    name: str
    function: Reward
    asked_as: str | None = None  # the name it was found by; None where it was handed over


def resolve_rewards(rewards: Sequence[str | Reward]) -> list[NamedReward]:
    """Turn names and callables into rewards with distinct names.

    Args:
        rewards: callables, or names: ``package.module:function`` (also with a dot) or
            ``path/to/file.py:function``; or a sequence classifier: a folder or hub id.

    Raises:
        RewardError: a name that does not resolve, or something that cannot be called.
    """
    found = [_found(reward) for reward in rewards]
    taken = [reward.name for reward in found]
    return [
        r if taken.count(r.name) == 1 else replace(r, name=f"{r.name}_{i}")
        for i, r in enumerate(found)
    ]


def _found(reward: str | Reward) -> NamedReward:
    """A reward under its own name; a function that was named is asked in its own process."""
    function = resolve(reward)
    if isinstance(reward, str) and not names_model(reward):
        return NamedReward(_short_name(reward), function, reward)
    return NamedReward(_short_name(function), function)


def _short_name(reward: str | Reward) -> str:
    if isinstance(reward, str):
        return reward.replace(":", ".").split(".")[-1]
    return getattr(reward, "__name__", type(reward).__name__)


def resolve(reward: str | Reward) -> Reward:
    """The function of a name; a function is itself.

    Raises:
        RewardError: a name that does not resolve, or something that cannot be called.
    """
    if isinstance(reward, str):
        reward = named_model(reward) if names_model(reward) else _import(reward)
    if not callable(reward):
        raise RewardError(
            f"a reward must be a function or its name, got {type(reward).__name__}: {reward!r:.100}"
            "; name a function as package.module:function or path/to/file.py:function"
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
            f"{'' if public else '; it has no functions'}"
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
            f"the reward {name!r} cannot be loaded: {type(error).__name__}: {error}; mend {place}"
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
            f"the reward {name!r} cannot be loaded: {type(error).__name__}: {error}{seen}; name "
            "it as package.module:function or path/to/file.py:function"
        ) from error


def check_columns(rewards: Sequence[NamedReward], columns: Sequence[str]) -> None:
    """Refuse rewards that need a column which the data do not have.

    Raises:
        DataError: a column has a name under which every reward is told something else.
        RewardError: names the function, the column and the columns there are.
    """
    taken = [name for name in columns if name in _ALWAYS + _ON_REQUEST]
    if taken:
        raise DataError(
            f"the data have a column {taken[0]!r}, but rewards are told something else under that "
            f"name; rename it (taken are: {', '.join(_ALWAYS + _ON_REQUEST)})"
        )
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


def listed(
    reward_funcs: str | Reward | Sequence[str | Reward] | None,
) -> Sequence[str | Reward] | None:
    """One reward or several as a list."""
    if isinstance(reward_funcs, str) or callable(reward_funcs):
        return [reward_funcs]
    return reward_funcs
