"""From the columns of a data set to the task of each row, and what its completion goes on from."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rewards.batches import missing_column, text_of
from rewards.grading.assertions import checked_tests, function_under_test
from rewards.grading.extraction import Opening, opening_of
from rewards.grading.task_forms import AssertTask, CallTask, Task, UnfitTask, read_task

Row = Mapping[str, Any]  # column name -> value


@dataclass(frozen=True)
class RowTask:
    """The task of a row, and the code in its prompt that begins the function, if there is any."""

    task: Task
    opening: Opening | None


def unit_tests_row(row: Row) -> RowTask:
    """A row with `tests` in a form of `rewards.grading.task_forms`, and perhaps a `prompt`."""
    task = read_task(row["tests"])
    entry = task.entry if isinstance(task, (CallTask, AssertTask)) else None
    prompt = text_of(row.get("prompt"))
    if prompt is None:
        prompt = _prompt_inside(row["tests"])
    return RowTask(task, None if entry is None or prompt is None else opening_of(prompt, entry))


def humaneval_row(row: Row) -> RowTask:
    """A row of HumanEval: `prompt`, `test` with a function `check`, `entry_point`.

    The prompt's imports and helpers are there for the tests as well.
    """
    test, entry = _text(row, "test"), _text(row, "entry_point")
    if not entry.isidentifier():
        raise UnfitTask(f"entry_point is {entry!r:.80}; expected the name of a function")
    prompt = text_of(row.get("prompt"))
    if prompt is None:
        raise UnfitTask("the prompt is no text and no messages")
    opening = opening_of(prompt, entry)
    setup = opening.complete if opening is not None else ""
    return RowTask(AssertTask(entry, test, checked_tests(test, setup, entry, True), True), opening)


def mbpp_row(row: Row) -> RowTask:
    """A row of MBPP: `test_list`, and perhaps `test_setup_code`, `test_imports`, `prompt`.

    The function's name is the one that the tests call.
    """
    tests = _texts(row, "test_list")
    if not tests:
        raise UnfitTask("no tests")
    setup = "\n".join([*_texts(row, "test_imports"), row.get("test_setup_code") or ""])
    task = _mbpp_task(tests, setup)
    prompt = text_of(row.get("prompt"))
    return RowTask(task, None if prompt is None else opening_of(prompt, task.entry))


@functools.lru_cache(maxsize=1 << 10)
def _mbpp_task(tests: tuple[str, ...], setup: str) -> AssertTask:
    entry, joined = function_under_test(list(tests), setup), "\n".join(tests)
    return AssertTask(entry, joined, checked_tests(joined, setup, entry, False), False)


def unfit_reasons(
    name: str,
    needed: Sequence[str],
    read: Callable[[Row], RowTask],
    columns: Mapping[str, Sequence[Any]],
) -> list[str | None]:
    """For each row why it cannot be judged, None where it can.

    Raises:
        TypeError: a column that the reward `name` needs is missing.
    """
    missing = [column for column in needed if column not in columns]
    if missing:
        raise missing_column(name, missing[0], columns)
    return [_unfit_reason(read, row) for row in rows_of(columns)]


def rows_of(columns: Mapping[str, Sequence[Any]]) -> list[Row]:
    """The rows of a table given as columns; `prompts` is another name of `prompt`."""
    named = {("prompt" if name == "prompts" else name): values for name, values in columns.items()}
    count = len(next(iter(named.values()), ()))
    return [{name: values[row] for name, values in named.items()} for row in range(count)]


def _unfit_reason(read: Callable[[Row], RowTask], row: Row) -> str | None:
    try:
        read(row)
    except UnfitTask as reason:
        return str(reason)
    return None


def _text(row: Row, column: str) -> str:
    value = row.get(column)
    if not isinstance(value, str):
        raise UnfitTask(f"{column} is a {type(value).__name__}; expected a text")
    return value


def _texts(row: Row, column: str) -> tuple[str, ...]:
    values = row.get(column) or ()
    if isinstance(values, str) or not all(isinstance(value, str) for value in values):
        raise UnfitTask(f"{column} is {values!r:.80}; expected a list of texts")
    return tuple(values)


def _prompt_inside(tests: Any) -> str | None:
    """The `prompt` in an object of tests that has been read without complaint."""
    given = json.loads(tests) if isinstance(tests, str) else tests
    return text_of(given.get("prompt"))
