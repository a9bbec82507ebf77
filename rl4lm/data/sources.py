"""Read the rows of a data set: shipped, from files, or from the hub.

Imports no torch, and `datasets` only where rows are read.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from rl4lm.builtin import dataset_rows, is_builtin
from rl4lm.data.columns import Row
from rl4lm.data.datafiles import (
    FORMATS,
    DataFiles,
    find_files,
    rows_are_under_data,
    where_it_breaks,
)
from rl4lm.data.procedural import is_procedural, puzzle_rows
from rl4lm.errors import DataError, MissingSplitError, did_you_mean

# What `datasets` says of a configuration that is missing or unknown ends with those there are.
_CONFIGURATIONS = re.compile(r"(?:available configs: |not found\. Available: )\[(.*?)\]")


@dataclass(frozen=True)
class Access:
    """How a data set is opened."""

    configuration: str | None = None  # None: its only one
    streamed_rows: int | None = None  # so many of the first rows are read; None: the whole


def load_rows(name: str, split: str, access: Access) -> Sequence[Row]:
    """The rows of one split; `data.examples.load_split` says what names and splits there are."""
    if is_procedural(name):
        return puzzle_rows(name, split)[: access.streamed_rows]
    files = find_files(name, access.configuration)
    if is_builtin(name):
        return dataset_rows(name, split)[: access.streamed_rows]
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # errors are told in our words
    try:
        splits = _open(name, files, access)
        rows = _taken(splits[split], access.streamed_rows) if split in splits else None
    except Exception as error:
        told = f"{_reason(error)}{_what_to_do(name, files, error)}"
        raise DataError(f"the data set {name!r} cannot be read: {told}") from error
    if rows is None:
        raise MissingSplitError(
            f"the data set {name!r} has no split {split!r}; it has: {', '.join(splits)}"
            ". Choose splits with --dataset_train_split and --dataset_test_split"
            f"{did_you_mean(split, list(splits))}"
        )
    return rows


def _taken(rows: Any, first: int | None) -> Sequence[Row]:
    return rows if first is None else list(islice(rows, first))


def _open(name: str, files: DataFiles | None, access: Access) -> Mapping[str, Any]:
    """The splits of a data set by name."""
    import datasets

    options: dict[str, Any] = {"streaming": access.streamed_rows is not None}
    if files is not None:
        if any(map(rows_are_under_data, files.all)):
            options["field"] = "data"
        places = {  # escaped: `datasets` takes every name for a pattern
            split: [glob.escape(str(path)) for path in each]
            for split, each in files.by_split.items()
        }
        return datasets.load_dataset(files.format, data_files=places, **options)
    folder = Path(name).expanduser()
    if (folder / "state.json").is_file():  # written by Dataset.save_to_disk
        return {"train": datasets.load_from_disk(str(folder))}
    if folder.is_dir():
        return datasets.load_dataset(str(folder), access.configuration, **options)
    try:
        return datasets.load_dataset(name, access.configuration, **options)
    except Exception:  # of many kinds; raised again unless the hub's own cache has the data
        copy = _copy_in_hub_cache(name)
        if copy is None:
            raise
    return datasets.load_dataset(copy, access.configuration, **options)


def _copy_in_hub_cache(name: str) -> str | None:
    """The folder of a data set that was downloaded, where the hub may not be asked; else None.

    `datasets` by itself finds only what it has read before, not what `hf download` has fetched.
    """
    from huggingface_hub import constants, errors, snapshot_download

    if not constants.HF_HUB_OFFLINE:
        return None
    try:
        return snapshot_download(name, repo_type="dataset", local_files_only=True)
    except (errors.LocalEntryNotFoundError, errors.HFValidationError):
        return None


def _reason(error: Exception) -> str:
    cause = error.__cause__ or error
    reason = str(cause).strip().split("\n")[0] or type(cause).__name__
    if isinstance(cause, StopIteration) or "corresponds to no data" in reason:
        return "it has no rows"
    return reason[:300]


def _what_to_do(name: str, files: DataFiles | None, error: Exception) -> str:
    """Where a file is broken, or what else a name could have been."""
    configurations = _CONFIGURATIONS.search(str(error))
    if configurations:
        return f"; it has the configurations {configurations[1]}: name one with --dataset_config"
    if files is not None and files.all[0].suffix.lower() == ".jsonl":
        return f"; {_where_they_break(files.all)}"
    if files is not None:
        return "; mend the file or write it again"
    if Path(name).expanduser().is_dir():
        return f"; put files in it that end in {', '.join(FORMATS)}"
    return f"; there is no file or folder of that name either (looked in {Path.cwd()})"


def _where_they_break(paths: Sequence[Path]) -> str:
    if len(paths) == 1:
        return where_it_breaks(paths[0])
    told = [(path, where_it_breaks(path)) for path in paths]
    path, words = next((pair for pair in told if pair[1].startswith("line ")), told[0])
    return f"{path.name}: {words}" if words.startswith("line ") else words
