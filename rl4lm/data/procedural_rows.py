"""Make the rows of a procedural task; runs in the process that `procedural` starts."""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from rl4lm.errors import did_you_mean


def main() -> None:
    """Read from the standard input what is asked for, and write a row a line to its output."""
    asked = json.load(sys.stdin)
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a task prints is no row
    try:
        for row in rows(asked["task"], asked["config"], asked["seed"], asked["count"]):
            out.write(json.dumps(row) + "\n")
    except (AssertionError, TypeError, ValueError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    out.flush()


def rows(task: str, config: dict[str, Any], seed: int, count: int) -> Iterator[dict[str, Any]]:
    """The rows of a task.

    Raises:
        ValueError, TypeError, AssertionError: no such task, or not with this configuration.
    """
    import numpy as np
    from reasoning_gym.factory import DATASETS, create_dataset

    if task not in DATASETS:
        raise ValueError(f"there is no task {task!r}{did_you_mean(task, sorted(DATASETS))}")
    known = [field.name for field in fields(DATASETS[task][1])]
    for key in config:
        if key not in known:
            raise ValueError(f"no field {key!r}{did_you_mean(key, known)}; it has {known}")
    settings = {**config, "seed": seed, "size": count}
    made = create_dataset(task, **settings)
    for number in range(count):
        random.seed(seed + number)
        np.random.seed((seed + number) % 2**32)
        entry = made[number]
        graded_by = {"task": task, "config": settings, **entry}
        yield {
            "prompt": entry["question"],
            "answer": None if entry["answer"] is None else str(entry["answer"]),
            "task": task,
            "entry": json.dumps(as_json(graded_by), ensure_ascii=False),
        }


def as_json(value: Any) -> Any:
    """A value in JSON: tuples and mappings with other keys than texts are marked, and not lost.

    A tuple is ``{"()": [...]}``, such a mapping ``{"{}": [[key, value], ...]}``, as
    `rewards.puzzle_grading` reads them. What JSON has no form for, such as a Fraction, is its text.
    """
    if isinstance(value, tuple):
        return {"()": [as_json(each) for each in value]}
    if isinstance(value, list):
        return [as_json(each) for each in value]
    if isinstance(value, dict):
        if all(isinstance(key, str) for key in value) and not value.keys() & {"()", "{}"}:
            return {key: as_json(each) for key, each in value.items()}
        return {"{}": [[as_json(key), as_json(each)] for key, each in value.items()]}
    return value if value is None or isinstance(value, (str, int, float)) else str(value)
