"""Rows to score: prompts with the columns of their rewards, and mostly completions, from files.

JSON lines are read here, a line at a time, so that a broken one is named by its number and columns
need not have one type. Other formats and data sets go through `rl4lm.data.sources`. Imports no
torch, so that a broken line is answered at once.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from rl4lm.builtin import is_builtin
from rl4lm.data.sources import Access, load_rows
from rl4lm.errors import DataError, OutputError, did_you_mean

Row = Mapping[str, Any]

REQUIRED = ("prompt", "completion")
_TABLES = (".csv", ".parquet")
_LOGGED = {"prompt_id", "sampling_logprob", "columns"}  # which only rows of a run's log have


def read_rows(
    path: str | Path,
    *,
    required: Sequence[str] = REQUIRED,
    prompt_column: str = "prompt",
    split: str = "train",
    most: int | None = None,
) -> list[Row]:
    """Read rows to score.

    Args:
        path: a jsonl, json, csv or parquet file, or a data set that
        `rl4lm.data.examples.load_split` knows. required: what each row must have, of `prompt` and
        `completion`. prompt_column: the column that is called `prompt` in the rows returned. split:
        of a data set that is no file. most: rows read, the first ones; None for all.

    Raises:
        DataError: no file, a line that is not a JSON object, a row without what is required, or no
            rows; names the line or the row.
    """
    known: dict[str, Row] = {}
    found = islice(_rows(path, split), most)
    rows = [
        _checked(where, _unfolded(_with_prompt(row, prompt_column), known), required, shown)
        for where, row, shown in found
    ]
    if not rows:
        raise DataError(f"--data {str(path)!r} has no rows; write one JSON object per line")
    return rows


def _rows(path: str | Path, split: str) -> Iterator[tuple[str, Any, str]]:
    """Each row with its place, and how a message shows it."""
    if is_builtin(str(path)) or _is_data_set(Path(path)):
        loaded = load_rows(str(path), split, Access())
        return ((f"{path}, row {i}", row, str(row)) for i, row in enumerate(loaded, start=1))
    return _parse(Path(path))


def _is_data_set(path: Path) -> bool:
    """Whether a name is read by `rl4lm.data.sources`: a table, or the ``owner/name`` of the hub."""
    if path.suffix.lower() in _TABLES:
        return True
    with contextlib.suppress(OSError, ValueError):  # no name of a file; it is told when it is read
        return (
            len(path.parts) == 2
            and not path.parent.exists()
            and not path.suffix.lower().startswith(".json")
            and path.parts[0] not in ("/", "..", "~")
        )
    return False


def _parse(path: Path) -> Iterator[tuple[str, Any, str]]:
    try:
        content = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    except (OSError, ValueError) as error:  # ValueError: a name with a null byte
        raise DataError(
            f"--data {str(path)!r:.100} cannot be read: {error}; name a jsonl, json, csv or "
            "parquet file"
        ) from error
    if path.suffix.lower() == ".json" and content.lstrip().startswith(b"["):
        rows = _decoded(f"{path}", content, "a list of JSON objects")
        yield from ((f"{path}, row {i}", row, str(row)) for i, row in enumerate(rows, start=1))
        return
    for number, encoded in enumerate(content.split(b"\n"), start=1):
        if encoded.strip():
            where = f"{path}, line {number}"
            row = _decoded(where, encoded, "one JSON object per line")
            yield where, row, encoded.decode("utf-8")


def _decoded(where: str, encoded: bytes, expected: str) -> Any:
    try:
        return json.loads(encoded.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # ValueError: not UTF-8, or a huge number
        raise DataError(f"{where}: not JSON: {error}; write {expected}, in UTF-8") from error


def _with_prompt(row: Any, column: str) -> Any:
    if column == "prompt" or not isinstance(row, Mapping) or column not in row:
        return row
    return {"prompt": row[column], **{n: v for n, v in row.items() if n not in (column, "prompt")}}


def _unfolded(row: Any, known: dict[str, Row]) -> Any:
    """A row of a run's log with the columns of the data as its own.

    Args:
        row: of any kind.
        known: prompt -> the columns that rows before this one have given it, which are noted here.
            The long ones stand in the first row of a prompt alone.
    """
    if not (isinstance(row, Mapping) and row.keys() >= _LOGGED):
        return row
    if not isinstance(row["columns"], Mapping):
        return row
    columns = {**known.get(str(row["prompt_id"]), {}), **row["columns"]}
    known[str(row["prompt_id"])] = columns
    kept = {n: v for n, v in columns.items() if n not in (*REQUIRED, "completion_ids")}
    return {**{n: v for n, v in row.items() if n != "columns"}, **kept}


def _checked(where: str, row: Any, required: Sequence[str], shown: str) -> Row:
    missing = [n for n in required if not isinstance(row, Mapping) or row.get(n) is None]
    if missing:
        without = "completion" in missing and isinstance(row, Mapping) and "completion" not in row
        near = did_you_mean("prompt", row) if isinstance(row, Mapping) else ""
        raise DataError(
            f"{where}: a row must be a JSON object with {' and '.join(required)}, "
            f"and {' and '.join(missing)} is missing: {shown[:100]}"
            + (near and f"{near}, with --prompt_column" if "prompt" in missing else "")
            + ("; --model NAME samples completions first" if without else "")
        )
    for name, (fits, expected) in _EXPECTED.items():
        value = row.get(name)
        if value is not None and not fits(value):
            raise DataError(f"{where}: {expected}, got {value!r:.100}")
    return row


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(v, int) for v in value)


def _is_completion(value: Any) -> bool:
    if isinstance(value, list) and value and isinstance(value[-1], dict):
        return isinstance(value[-1].get("content"), str)
    return isinstance(value, str)


# Column -> what it may hold, and in words.
_EXPECTED: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "completion": (
        _is_completion,
        "the completion must be text or a list of messages such as "
        '{"role": "assistant", "content": "text"}',
    ),
    "prompt": (
        lambda value: isinstance(value, str | list),
        "the prompt must be text or a list of messages",
    ),
    "completion_ids": (_is_ids, "completion_ids must be a list of token ids"),
}


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write rows as jsonl, whole or not at all.

    Raises:
        OutputError: the file cannot be written.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a directory")
        with temporary.open("w", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")
        temporary.replace(path)
    except (OSError, UnicodeEncodeError) as error:  # the latter: half of a surrogate pair
        with contextlib.suppress(OSError):  # it may never have been made
            temporary.unlink()
        raise OutputError(
            f"--out {str(path)!r} cannot be written: {error}; name a file in a folder that exists"
        ) from error
