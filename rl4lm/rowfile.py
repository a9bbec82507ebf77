"""Files of rows to score: completions with their prompts and columns, as JSON lines.

Imports no torch, so that a broken line is answered at once.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rl4lm.errors import DataError, OutputError

Row = Mapping[str, Any]

REQUIRED = ("prompt", "completion")


def read_rows(path: Path) -> list[Row]:
    """Read a jsonl file of rows to score.

    Raises:
        DataError: no file, a line that is not a JSON object, a row without prompt or completion,
            or no rows; names the line.
    """
    try:
        content = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a name with a null byte
        raise DataError(
            f"--data {str(path)!r:.100} cannot be read: {error}; name a jsonl file"
        ) from error
    rows = list(_parse(path, content.removeprefix(codecs.BOM_UTF8)))
    if not rows:
        raise DataError(f"--data {str(path)!r} has no rows; write one JSON object per line")
    return rows


def _parse(path: Path, content: bytes) -> Iterator[Row]:
    for number, encoded in enumerate(content.split(b"\n"), start=1):
        if not encoded.strip():
            continue
        try:
            line = encoded.decode("utf-8")
            row = json.loads(line)
        except (ValueError, RecursionError) as error:  # ValueError: not UTF-8, or a huge number
            raise DataError(
                f"{path}, line {number}: not JSON: {error}; write one JSON object per line, in "
                "UTF-8"
            ) from error
        missing = [n for n in REQUIRED if not isinstance(row, dict) or row.get(n) is None]
        if missing:
            raise DataError(
                f"{path}, line {number}: a row must be a JSON object with prompt and completion, "
                f"and {' and '.join(missing)} is missing: {line[:100]}"
            )
        if not _is_completion(row["completion"]):
            raise DataError(
                f"{path}, line {number}: the completion must be text or a list of messages such as "
                f'{{"role": "assistant", "content": "text"}}, got {row["completion"]!r:.100}'
            )
        if not isinstance(row["prompt"], str | list):
            raise DataError(
                f"{path}, line {number}: the prompt must be text or a list of messages, got "
                f"{row['prompt']!r:.100}"
            )
        if not _is_ids(row.get("completion_ids")):
            raise DataError(
                f"{path}, line {number}: completion_ids must be a list of token ids, got "
                f"{row['completion_ids']!r:.100}"
            )
        yield row


def _is_ids(value: Any) -> bool:
    return value is None or (isinstance(value, list) and all(isinstance(v, int) for v in value))


def _is_completion(value: Any) -> bool:
    if isinstance(value, list) and value and isinstance(value[-1], dict):
        return isinstance(value[-1].get("content"), str)
    return isinstance(value, str)


def write_rows(path: Path, rows: Sequence[Row]) -> None:
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
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        temporary.replace(path)
    except (OSError, UnicodeEncodeError) as error:  # the latter: half of a surrogate pair
        with contextlib.suppress(OSError):  # it may never have been made
            temporary.unlink()
        raise OutputError(
            f"--out {str(path)!r} cannot be written: {error}; name a file in a folder that exists"
        ) from error
