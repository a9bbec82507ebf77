"""Procedural tasks of the library `reasoning-gym` as data sets. Needs the extra `reasoning`.

    reasoning_gym:leg_counting
    reasoning_gym:leg_counting?max_animals=5&size=2000&seed=1

A name is a task, and after `?` what it is made with: `seed` (0) and `size` (1000) of the training
split, `test_size` (200), and the fields of the task's own configuration.

Some tasks depend on the hash seed of the process, or on global random numbers. So rows are made in
a process of their own, where both are fixed: a resumed run sees the prompts that it saw before.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from typing import Any
from urllib.parse import parse_qsl

import yaml

from rl4lm.errors import DataError, MissingSplitError

PREFIX = "reasoning_gym:"
PUZZLES_SOLVED = "rewards.puzzles:solved"  # the accuracy of an evaluation on such rows

# A row of a task is seeded by the data set's seed plus its number, so that a test split of the next
# seed would be the training split but for one row.
_TEST_SEED = 1 << 30
_ROUNDS = 5  # of drawing a test split until it is full
_OWN = {"seed": 0, "size": 1000, "test_size": 200}

_PROGRAM = """
import sys
sys.path[:] = {path!r}
from rl4lm.data.procedural_rows import main
main()
"""


@dataclass(frozen=True)
class Puzzle:
    """A task, and what its rows are made with."""

    task: str
    config: str  # JSON of the task's own configuration
    seed: int
    size: int
    test_size: int


def is_procedural(name: str) -> bool:
    """Whether the name of a data set asks for a procedural task."""
    return name.startswith(PREFIX)


def puzzle_rows(name: str, split: str) -> list[dict[str, Any]]:
    """The rows of a split, with the columns `prompt`, `answer`, `task` and `entry`.

    `answer` is one right answer, or None where the task only knows how to check one; `entry` is the
    JSON that `rewards.puzzles` grades by. No prompt of the test split is in the training split; it
    has fewer rows than asked for where the task knows no more.

    Raises:
        DataError: no such task, a configuration that it does not take, or the library is missing.
        MissingSplitError: a split other than train and test, or no prompt is left for the test.
    """
    if split not in ("train", "test"):
        raise MissingSplitError(f"{name!r} has the splits train and test, and no {split!r}")
    puzzle = read_name(name)
    train = _made(puzzle, puzzle.seed, puzzle.size)
    if split == "train":
        return train
    fresh = _fresh(puzzle, {row["prompt"] for row in train})
    if not fresh:
        raise MissingSplitError(
            f"{name!r} has no prompt that is not in its training split of {puzzle.size} rows; give "
            "a smaller size, or a configuration with more variety"
        )
    return fresh


def _fresh(puzzle: Puzzle, seen: set[str]) -> list[dict[str, Any]]:
    """As many rows as the test split has, or as there are, with prompts that are not `seen`."""
    fresh: dict[str, dict[str, Any]] = {}
    for turn in range(_ROUNDS):
        seed = puzzle.seed + _TEST_SEED + turn * puzzle.test_size
        drawn = _made(puzzle, seed, puzzle.test_size)
        fresh |= {row["prompt"]: row for row in drawn if row["prompt"] not in {*seen, *fresh}}
        if len(fresh) >= puzzle.test_size:
            break
    return list(fresh.values())[: puzzle.test_size]


def read_name(name: str) -> Puzzle:
    """The task that a name asks for.

    Raises:
        DataError: it is not written as TASK?key=value&key=value.
    """
    task, _, rest = name.removeprefix(PREFIX).partition("?")
    try:
        given = {k: yaml.safe_load(v) for k, v in parse_qsl(rest, strict_parsing=bool(rest))}
    except (ValueError, yaml.YAMLError) as error:
        raise DataError(
            f"{name!r} cannot be read ({error}); write {PREFIX}TASK?key=value&key=value"
        ) from error
    own = {key: given.pop(key, default) for key, default in _OWN.items()}
    for key, value in own.items():
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < _TEST_SEED:
            raise DataError(f"{name!r}: {key} must be a whole number, 0 or more, got {value!r}")
    if not own["size"] or not own["test_size"]:
        raise DataError(f"{name!r}: size and test_size must be 1 or more")
    return Puzzle(task, json.dumps(given, sort_keys=True), **own)


@lru_cache(maxsize=4)  # the test split is made beside the training split
def _made(puzzle: Puzzle, seed: int, count: int) -> list[dict[str, Any]]:
    if find_spec("reasoning_gym") is None:
        raise DataError(
            f"{PREFIX}{puzzle.task} needs the library reasoning-gym, which is not installed; "
            "install it by: pip install 'rl4lm[reasoning]'"
        )
    asked = {"task": puzzle.task, "config": json.loads(puzzle.config), "seed": seed, "count": count}
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM.format(path=[p or os.getcwd() for p in sys.path])],
        input=json.dumps(asked).encode(),
        capture_output=True,
        env={**os.environ, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"},
        check=False,
    )
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise DataError(f"{PREFIX}{puzzle.task} cannot be made: {''.join(last)[:500]}")
    rows: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines()]
    return rows
