"""What ships with the package: names such as `builtin:tiny-arithmetic`, and what they stand for.

Models are ordinary `save_pretrained` directories beside this file, each with a card (README.md)
and, in `settings/`, the training settings that suit it; data sets are made by rule. To add a
model: save it here, add its settings and a line to `BUILTIN_MODELS`. To add a data set: a function
from a split to rows, and a line in `BUILTIN_DATASETS`. Imports neither torch nor transformers.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from rl4lm.builtin.arithmetic import arithmetic_rows
from rl4lm.builtin.code import code_rows
from rl4lm.builtin.graded import LEVELS, graded_rows
from rl4lm.errors import ConfigError

PREFIX = "builtin:"

BUILTIN_MODELS: dict[str, str] = {
    "builtin:tiny-arithmetic": "tiny-arithmetic",
    "builtin:tiny-code": "tiny-code",
}
"""Name -> directory beside this file."""

BUILTIN_DATASETS: dict[str, Callable[..., list[dict[str, Any]]]] = {
    "builtin:arithmetic": arithmetic_rows,
    "builtin:code": code_rows,
    "builtin:graded-arithmetic": graded_rows,
}
"""Name -> function from a split to its rows."""

_GRADED = "builtin:graded-arithmetic:"  # and levels behind it

_HERE = Path(__file__).parent


def is_builtin(name: str) -> bool:
    """Whether a name asks for something that ships with the package."""
    return name.startswith(PREFIX)


def model_path(name: str) -> Path:
    """The directory of a shipped checkpoint, for `from_pretrained`.

    Raises:
        ConfigError: for a name that no shipped model has; names the nearest one.
    """
    _check_known("model", name, BUILTIN_MODELS)
    return _HERE / BUILTIN_MODELS[name]


def builtin_name(path: str) -> str | None:
    """The name of a shipped checkpoint by its folder, here or where it was installed once."""
    if path in BUILTIN_MODELS:
        return path
    *_, package, room, folder = ("", "", "", *Path(path).parts)
    if (package, room) != ("rl4lm", "builtin"):
        return None
    return next((name for name, place in BUILTIN_MODELS.items() if place == folder), None)


def model_settings(name: str, adapters: bool = False) -> dict[str, Any]:
    """The training settings that suit a shipped checkpoint, as flat configuration keys.

    Args:
        name: of the model.
        adapters: whether LoRA adapters are trained instead of the whole model.

    Raises:
        ConfigError: for a name that no shipped model has; names the nearest one.
    """
    _check_known("model", name, BUILTIN_MODELS)
    settings = _read_settings(f"{BUILTIN_MODELS[name]}.yaml")
    if adapters:
        settings |= _read_settings(f"{BUILTIN_MODELS[name]}.lora.yaml")
    return settings


def _read_settings(file: str) -> dict[str, Any]:
    text = (_HERE / "settings" / file).read_text(encoding="utf-8")
    settings: dict[str, Any] = yaml.safe_load(text)
    return settings


def dataset_rows(name: str, split: str) -> list[dict[str, Any]]:
    """All rows of a split of a data set made by rule: `prompt`, and columns for the rewards.

    Raises:
        ConfigError: for a name or a split that does not exist; names the nearest one.
    """
    rows = _rows_of(name)
    _check_known("split", split, ("train", "test"))
    return rows(split)


def _rows_of(name: str) -> Callable[..., list[dict[str, Any]]]:
    if name.startswith(_GRADED):
        return partial(graded_rows, levels=_levels(name.removeprefix(_GRADED)))
    _check_known("data set", name, BUILTIN_DATASETS)
    return BUILTIN_DATASETS[name]


def _levels(asked: str) -> Sequence[int]:
    """The levels of a text such as `3`, `2-4` or `1,3,5-6`.

    Raises:
        ConfigError: it is no such text, or there is no such level.
    """
    found: set[int] = set()
    for part in asked.split(","):
        first, dash, last = part.partition("-")
        ends = [first, last] if dash else [first, first]
        if not all(end in map(str, LEVELS) for end in ends):
            raise ConfigError(
                f"{_GRADED}{asked} names no levels; there are {LEVELS[0]} to {LEVELS[-1]}, "
                f"written such as {_GRADED}2-4 or {_GRADED}1,3"
            )
        found |= set(range(int(ends[0]), int(ends[1]) + 1))
    if not found:
        raise ConfigError(f"{_GRADED}{asked} holds no level: the first of a range is the smaller")
    return sorted(found)


def _check_known(what: str, name: str, known: Iterable[str]) -> None:
    """Raise with the nearest known name where `name` is not one."""
    names = list(known)
    if name in names:
        return
    nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.0)
    raise ConfigError(
        f"there is no built-in {what} {name!r}; did you mean {nearest[0]!r}? "
        f"There are: {', '.join(names)}"
    )
