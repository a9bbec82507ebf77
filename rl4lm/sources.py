"""Read the rows of a data set: shipped, from files, or from the hub.

Imports no torch, so that a missing file is answered at once.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rl4lm.builtin import dataset_rows, is_builtin
from rl4lm.errors import DataError, MissingSplitError, did_you_mean
from rl4lm.procedural import is_procedural, puzzle_rows

Row = Mapping[str, Any]

_FORMATS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}


def check_source(name: str) -> str | None:
    """Refuse a file that cannot be read as rows; anything that is no file is left to `load_rows`.

    Returns:
        The format of a file, as `datasets` calls it, or None where the name is not a file's.

    Raises:
        DataError: a file that is not there, is empty, has an unknown ending, or two columns of
            one name.
    """
    path = Path(name).expanduser()
    file_format = _FORMATS.get(path.suffix.lower())
    try:
        is_file, is_folder = path.is_file(), path.is_dir()
    except OSError as error:  # a name that is too long
        raise DataError(f"{name!r:.100} is no data set: {error.strerror}") from error
    if file_format and not is_file:
        raise DataError(f"there is no file {name!r} (looked in {Path.cwd()})")
    if is_file and file_format is None:
        raise DataError(
            f"{name!r} is a {path.suffix or 'nameless'} file; prompts are read from "
            f"{', '.join(_FORMATS)}"
        )
    if not (is_file or is_folder) and name.startswith(("/", ".", "~")):
        raise DataError(f"there is no file or folder {name!r} (looked in {Path.cwd()})")
    if file_format == "csv":
        _check_header(name, path)
    if file_format and path.stat().st_size == 0:
        raise DataError(f"{name!r} is empty; at least one prompt is needed")
    return file_format


def check_prompts(name: str, prompt_column: str) -> None:
    """Refuse a csv or jsonl file whose first line has no prompts, before anything is loaded.

    Raises:
        DataError: names the columns there are; or as `check_source`.
    """
    if check_source(name) is None:
        return
    path = Path(name).expanduser()
    columns = _header(path) if path.suffix.lower() == ".csv" else _first_keys(path)
    if columns and prompt_column not in columns:
        raise no_prompts(f"the rows of {name!r}", columns, prompt_column)


def no_prompts(rows: str, columns: Sequence[str], prompt_column: str) -> DataError:
    """What to say of rows without the prompt column."""
    return DataError(
        f"{rows} have no column {prompt_column!r}{did_you_mean(prompt_column, columns)}; they "
        f"have: {', '.join(columns)}. Name the column that holds the prompts with --prompt_column"
    )


def load_rows(name: str, split: str) -> Sequence[Row]:
    """The rows of one split; `rl4lm.data.load_split` says what names and splits there are."""
    if is_procedural(name):
        return puzzle_rows(name, split)
    return dataset_rows(name, split) if is_builtin(name) else _load_with_datasets(name, split)


def _load_with_datasets(name: str, split: str) -> Sequence[Row]:
    path, file_format = Path(name).expanduser(), check_source(name)
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # errors are told in our words
    try:
        if file_format:
            found = datasets.load_dataset(file_format, data_files={"train": str(path)})
        else:
            found = datasets.load_dataset(str(path) if path.is_dir() else name)
    except Exception as error:
        cause = error.__cause__ or error
        reason = str(cause).strip().split("\n")[0] or type(cause).__name__
        if isinstance(cause, StopIteration) or "corresponds to no data" in reason:
            reason = "it has no rows"
        raise DataError(
            f"the data set {name!r} cannot be read: {reason[:300]}{_what_to_do(name, path)}"
        ) from error
    if split not in found:
        raise MissingSplitError(
            f"the data set {name!r} has no split {split!r}; it has: {', '.join(found)}"
            ". Choose splits with --dataset_train_split and --dataset_test_split"
            f"{did_you_mean(split, list(found))}"
        )
    return found[split]


def _check_header(name: str, path: Path) -> None:
    """Refuse a csv file with two columns of one name, which would be renamed in silence."""
    header = _header(path)
    twice = [column for column in dict.fromkeys(header) if header.count(column) > 1]
    if twice:
        raise DataError(
            f"{name!r} has {header.count(twice[0])} columns called {twice[0]!r}; give every column "
            "a name of its own"
        )


def _header(path: Path) -> list[str]:
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        return next(csv.reader(file), [])


def _first_keys(path: Path) -> list[str]:
    """The columns of the first row of a jsonl file; none where that cannot be told."""
    if path.suffix.lower() != ".jsonl":
        return []
    with path.open("rb") as file:
        try:
            row = json.loads(file.readline())
        except (ValueError, RecursionError):  # told with its line when all rows are read
            return []
    return list(row) if isinstance(row, dict) else []


def _what_to_do(name: str, path: Path) -> str:
    """Where a file is broken, or what else a name could have been."""
    if path.suffix.lower() == ".jsonl":
        return f"; {_first_broken_line(path)}"
    if path.is_file():
        return "; mend the file or write it again"
    if path.is_dir():
        return f"; put files in it that end in {', '.join(_FORMATS)}"
    return f"; there is no file or folder of that name either (looked in {Path.cwd()})"


def _first_broken_line(path: Path) -> str:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                row = json.loads(line) if line.strip() else {}
            except (ValueError, RecursionError) as error:  # ValueError: not UTF-8 too
                return f"line {number} is not JSON ({error}): {line[:100]!r}; mend or drop it"
            if not isinstance(row, dict):
                return f"line {number} is no JSON object: {line[:100]!r}; mend or drop it"
    return "every line must be a JSON object, and a column of one type in all of them"
