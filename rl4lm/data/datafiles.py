"""Which files a name stands for, and what they say of themselves before they are read.

Imports neither torch nor `datasets`, so that a missing file is answered at once.
"""

from __future__ import annotations

import csv
import glob
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rl4lm.builtin import is_builtin
from rl4lm.data.columns import Shape
from rl4lm.data.procedural import is_procedural
from rl4lm.errors import DataError

FORMATS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}

# The words for splits in names of files, as `datasets` reads them in folders.
_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_FIRST_LINE = 2**20  # bytes
_SMALL = 2**24  # bytes of a json file that is looked into before the libraries are loaded


@dataclass(frozen=True)
class DataFiles:
    """Files of one format, by split."""

    format: str  # as `datasets` calls it
    by_split: Mapping[str, Sequence[Path]]

    @property
    def all(self) -> list[Path]:
        """Every file."""
        return [path for paths in self.by_split.values() for path in paths]


def find_files(name: str, configuration: str | None = None) -> DataFiles | None:
    """The files that a name stands for, each looked at and refused where it cannot be read as rows.

    Args:
        name: a file, or a pattern such as ``data/*.jsonl`` or ``data/**/*.parquet``.
        configuration: of the data set; files have none.

    Returns:
        The files; a single one is the split ``train``, several are told apart by their names. None
        where the name is that of a folder, a hub id, built in, or of a procedural task.

    Raises:
        DataError: a file that is not there, is empty, has an unknown ending, or two columns of
            one name; a pattern that no file fits, or whose files do not go together.
    """
    path = Path(name).expanduser()
    try:
        is_file, is_folder = path.is_file(), path.is_dir()
    except OSError as error:  # a name that is too long
        raise DataError(f"{name!r:.100} is no data set: {error.strerror}") from error
    if is_folder or is_procedural(name):  # the ? of a task's settings is no pattern
        return None
    if not is_file and glob.has_magic(name):
        found = _matching(name)
    elif is_file or path.suffix.lower() in FORMATS:
        found = DataFiles(_format(name, path), {"train": [path]})
    elif name.startswith(("/", ".", "~")):
        raise DataError(f"there is no file or folder {name!r} (looked in {Path.cwd()})")
    else:
        found = None
    if configuration is not None and (found or is_builtin(name)):
        raise DataError(
            f"dataset_config={configuration} asks for a configuration, and {name!r} has none: only "
            "folders and data sets of the hub do; leave dataset_config out"
        )
    for file in found.all if found else []:
        _check_content(file)
    return found


def _format(name: str, path: Path) -> str:
    file_format = FORMATS.get(path.suffix.lower())
    if file_format is None:
        raise DataError(
            f"{name!r} is a {path.suffix or 'nameless'} file; prompts are read from "
            f"{', '.join(FORMATS)}"
        )
    if not path.is_file():
        raise DataError(f"there is no file {name!r} (looked in {Path.cwd()})")
    return file_format


def _matching(pattern: str) -> DataFiles:
    """The files that a pattern fits, by split."""
    whole = str(Path(pattern).expanduser())
    paths = [Path(each) for each in sorted(glob.glob(whole, recursive=True))]
    paths = [path for path in paths if path.is_file()]
    if not paths:
        raise DataError(
            f"no file fits the pattern {pattern!r} (looked in {Path.cwd()}); ** stands for folders "
            "within folders, and names that begin with a dot are passed over"
        )
    formats = {_format(str(path), path): path for path in paths}
    if len(formats) > 1:
        one, other, *_ = formats.values()
        raise DataError(
            f"the pattern {pattern!r} fits files of several kinds, such as {one.name} and "
            f"{other.name}; write one that fits one kind, such as {'*' + one.suffix!r}"
        )
    return DataFiles(next(iter(formats)), _by_split(pattern, _fixed_folder(whole), paths))


def _fixed_folder(pattern: str) -> Path:
    """The folder that a pattern begins with; words in its name say nothing about splits."""
    parts = Path(pattern).parts
    fixed = next(k for k, part in enumerate(parts) if glob.has_magic(part))
    return Path(*parts[:fixed])


def _by_split(pattern: str, folder: Path, paths: Sequence[Path]) -> dict[str, list[Path]]:
    """Files by the split in their names, or in those of the folders that hold them.

    Raises:
        DataError: some files name a split and others do not, so that these would be passed over.
    """
    splits: dict[str | None, list[Path]] = {}
    for path in paths:
        splits.setdefault(_split_of(path.relative_to(folder)), []).append(path)
    nameless = splits.pop(None, [])
    named = {str(split): files for split, files in splits.items()}
    if not named:
        return {"train": nameless}
    if nameless:
        raise DataError(
            f"the pattern {pattern!r} fits files that name a split, such as "
            f"{next(iter(named.values()))[0].name}, and {len(nameless)} that do not, such as "
            f"{nameless[0].name}; put train, validation or test into each name, or into none"
        )
    return named


def _split_of(path: Path) -> str | None:
    for part in (path.stem, *(parent.name for parent in path.parents)):
        for split, words in _SPLITS.items():
            if re.search(rf"(?<![a-z])({'|'.join(words)})(?![a-z])", part.lower()):
                return split
    return None


def _check_content(path: Path) -> None:
    """Refuse an empty file, and one with two columns of one name, which are renamed in silence."""
    if path.stat().st_size == 0:
        raise DataError(f"{str(path)!r} is empty; at least one prompt is needed")
    if path.suffix.lower() != ".csv":
        return
    header = _header(path)
    twice = [column for column in dict.fromkeys(header) if header.count(column) > 1]
    if twice:
        raise DataError(
            f"{str(path)!r} has {header.count(twice[0])} columns called {twice[0]!r}; give every "
            "column a name of its own"
        )


def check_prompts(
    name: str, prompt_column: str, shape: Shape, configuration: str | None = None
) -> None:
    """Refuse csv and json files whose first row has no prompts, before anything is loaded.

    Raises:
        DataError: names the columns there are; or as `find_files`.
    """
    files = find_files(name, configuration)
    if files is None:
        return
    path = files.all[0]
    columns = _header(path) if path.suffix.lower() == ".csv" else _first_keys(path)
    if columns:
        shape.prompt_column(shape.names(columns), prompt_column, f"the rows of {name!r}")


def _header(path: Path) -> list[str]:
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        return next(csv.reader(file), [])


def _first_keys(path: Path) -> list[str]:
    """The columns of the first row of a jsonl or small json file; none where that is not told."""
    ending = path.suffix.lower()
    if ending == ".parquet" or (ending == ".json" and path.stat().st_size > _SMALL):
        return []
    with path.open("rb") as file:
        try:
            row = json.loads(file.readline() if ending == ".jsonl" else file.read())
        except (ValueError, RecursionError):  # told with its line when all rows are read
            return []
    if isinstance(row, dict) and ending == ".json" and rows_are_under_data(path):
        row = row["data"]
    if isinstance(row, list) and ending == ".json":
        row = next(iter(row), None)
    return list(row) if isinstance(row, dict) else []


def rows_are_under_data(path: Path) -> bool:
    """Whether a json file is one object that holds its rows as the list ``data``."""
    if path.suffix.lower() != ".json":
        return False
    with path.open("rb") as file:
        first = file.readline(_FIRST_LINE)
        if not first.lstrip().startswith(b"{") or (_is_json(first) and file.read(1)):
            return False  # a list, or an object to a line
        file.seek(0)
        try:
            content = json.load(file)
        except (ValueError, RecursionError):  # told in words when the rows are read
            return False
    rows = content.get("data")
    return isinstance(rows, list) and all(isinstance(row, dict) for row in rows)


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def where_it_breaks(path: Path) -> str:
    """The first line of a jsonl file that is no JSON object, in words."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                row = json.loads(line) if line.strip() else {}
            except (ValueError, RecursionError) as error:  # ValueError: not UTF-8 too
                return f"line {number} is not JSON ({error}): {line[:100]!r}; mend or drop it"
            if not isinstance(row, dict):
                return f"line {number} is no JSON object: {line[:100]!r}; mend or drop it"
    return "every line must be a JSON object, and a column of one type in all of them"
