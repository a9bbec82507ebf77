"""Read the rows of a data set: shipped, from files, or from the hub.

Imports no torch, so that a missing file is answered at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rl4lm.builtin import dataset_rows, is_builtin
from rl4lm.errors import DataError, MissingSplitError, did_you_mean

Row = Mapping[str, Any]

_FORMATS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}


def check_source(name: str) -> str | None:
    """Refuse a file that cannot be read as rows; anything that is no file is left to `load_rows`.

    Returns:
        The format of a file, as `datasets` calls it, or None where the name is not a file's.

    Raises:
        DataError: a file that is not there, is empty, or has an unknown ending.
    """
    path = Path(name).expanduser()
    file_format = _FORMATS.get(path.suffix.lower())
    if file_format and not path.is_file():
        raise DataError(f"there is no file {name!r} (looked in {Path.cwd()})")
    if path.is_file() and file_format is None:
        raise DataError(
            f"{name!r} is a {path.suffix or 'nameless'} file; prompts are read from "
            f"{', '.join(_FORMATS)}"
        )
    if file_format and path.stat().st_size == 0:
        raise DataError(f"{name!r} is empty; at least one prompt is needed")
    return file_format


def load_rows(name: str, split: str) -> Sequence[Row]:
    """The rows of one split; `rl4lm.data.load_split` says what names and splits there are."""
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
        raise DataError(f"the data set {name!r} cannot be read: {reason[:300]}") from error
    if split not in found:
        raise MissingSplitError(
            f"the data set {name!r} has no split {split!r}; it has: {', '.join(found)}"
            ". Choose splits with --dataset_train_split and --dataset_test_split"
            f"{did_you_mean(split, list(found))}"
        )
    return found[split]
