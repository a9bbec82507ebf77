"""Rows as texts are made from them: the right answer, wrong ones, and what else there is."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rl4lm.data.rowfile import Row
from rl4lm.errors import DataError, did_you_mean
from rl4lm.rewarding.calls import COMPLETION_FIELDS

ANSWER_COLUMNS = ("answer", "solution", "target", "gold", "ground_truth", "reference", "expected")
_NO_COLUMNS = {*COMPLETION_FIELDS, "detail", "label", "agrees"}  # of a run's log, or of this one
_ELSE = "something else"
_DEFINED = re.compile(r"\bdef\s+(\w+)\s*\(")
_ASSERTED = re.compile(r"\bassert\s+(\w+)\s*\(")
_BOXED = re.compile(r"\\boxed\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}")
_ENTRY = re.compile(r'"entry"\s*:\s*"(\w+)"')
_NAME = re.compile(r"(\w+)")


@dataclass(frozen=True)
class Subject:
    """One row, as texts."""

    prompt: str
    answer: str | None  # the short form: 18 of a solution that ends in `#### 18`
    solution: str | None  # as the row has it
    others: Sequence[str]  # wrong answers, other than `answer`, of which there is at least one
    completion: str | None  # of another row
    columns: Mapping[str, str]  # besides that of the answer
    entry: str  # the function that a program should define


def subjects(rows: Sequence[Row], answer_column: str | None = None) -> list[Subject]:
    """The rows as the kinds see them.

    Args:
        rows: with `prompt`, and columns.
        answer_column: the one that holds the right answer; None for the first of
            `ANSWER_COLUMNS` that there is.

    Raises:
        DataError: no row has an answer in the column that was named.
    """
    known = [n for n in ANSWER_COLUMNS if any(row.get(n) is not None for row in rows)]
    if answer_column is not None and all(row.get(answer_column) is None for row in rows):
        raise DataError(
            f"--answer_column {answer_column!r}: no row has such a column"
            f"{did_you_mean(answer_column, rows[0])}; they have: {', '.join(rows[0])}"
        )
    column = answer_column or (known[0] if known else None)
    given = [_plain(row.get(column)) if column else None for row in rows]
    short = [None if text is None else short_answer(text) for text in given]
    said = [_message(row["completion"]) if row.get("completion") else None for row in rows]
    return [
        Subject(
            prompt=_message(row["prompt"]),
            answer=short[i],
            solution=given[i],
            others=_others(short, i),
            completion=_next_other(said, short, i),
            columns=_columns(row, column),
            entry=_entry(row),
        )
        for i, row in enumerate(rows)
    ]


def short_answer(text: str) -> str:
    """What a worked solution comes to: behind the last ``####``, in the last box, or all of it."""
    boxes = _BOXED.findall(text)
    if "####" in text:
        text = text.rpartition("####")[2]
    elif boxes:
        text = boxes[-1]
    return text.strip()


def _others(answers: Sequence[str | None], place: int) -> list[str]:
    """Wrong answers of a row: one that is near, and that of another row."""
    own = answers[place]
    other = _next_other(answers, answers, place)
    near = [str(int(own) + 1)] if own and re.fullmatch(r"-?[0-9]{1,30}", own) else []
    return [*near, *([other] if other else [])] or [_ELSE]


def _next_other(texts: Sequence[str | None], answers: Sequence[str | None], i: int) -> str | None:
    """The text of the next row with another answer, or without any."""
    for j in [*range(i + 1, len(texts)), *range(i)]:
        if texts[j] and texts[j] != texts[i] and (answers[j] is None or answers[j] != answers[i]):
            return texts[j]
    return None


def _columns(row: Row, answer: str | None) -> dict[str, str]:
    names = (n for n in row if n not in _NO_COLUMNS and n != answer)
    plain = {name: _plain(row[name]) for name in names}
    return {name: text for name, text in plain.items() if text}


def _plain(value: Any) -> str | None:
    """A value of a column as text; of a list of answers the first."""
    if isinstance(value, list) and value and all(isinstance(v, str) for v in value):
        return value[0]
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)


def _message(value: Any) -> str:
    """Text, or the content of the last of some messages."""
    return value if isinstance(value, str) else str(value[-1].get("content") if value else "")


def _entry(row: Row) -> str:
    tests = row.get("tests")
    for pattern, text in (
        (_ENTRY, tests if isinstance(tests, str) else ""),
        (_NAME, str(row.get("entry_point") or "")),
        (_DEFINED, _message(row["prompt"])),
        (_ASSERTED, str(row.get("test_list") or "")),
    ):
        if found := pattern.search(text):
            return found[1]
    return "solution"
